"""``hatbus resume DIR``: goes on with a run from its newest good checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus import option_values
from hatbus.errors import JobError
from hatbus.option_values import short
from hatbus.runs.folders import run_folder

if TYPE_CHECKING:
    import argparse

    from hatbus.jobs.job import Job

JOB_FILE = "job.json"
_ELSEWHERE = ("run.run_dir", "run.name")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    from hatbus.cli import run as run_command
    from hatbus.jobs.command_line import change_options

    parser.add_argument(
        "dir", metavar="DIR", help="the run's folder; of one with several, the newest"
    )
    change_options(parser)
    run_command.training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the folder's job again from its newest good checkpoint.

    Raises:
        HatbusError: there is no run to resume, or what went wrong in it.
    """
    from hatbus.cli.run import checkpoint_options, limits
    from hatbus.jobs.command_line import show_log
    from hatbus.jobs.job import parse_job, read_job
    from hatbus.loop.signals import ignore_saves
    from hatbus.parallel.stopping import end_agent_of_restart

    ignore_saves(ends_after=args.is_process, before_leaving=end_agent_of_restart)
    show_log(quiet=args.quiet)
    folder = folder_of(args.dir)
    path, plugins = folder / JOB_FILE, tuple(args.plugins)
    here = f"run.run_dir={json.dumps(str(short(folder.parent)))}"
    refuse_stage(path)
    saved = read_job(path, plugins, (here,))
    saved.run_dir = folder
    saving = checkpoint_options(saved, args.drop_plugin_state or [], args.override or [])
    args.options = [*limits(args), *args.options]
    elsewhere = [word for word in args.options if word.partition("=")[0].strip() in _ELSEWHERE]
    options = (here, *saving, *args.options)
    job, _ = parse_job(path, plugins, options)
    if job is not None and not elsewhere:
        job.run_dir = folder
    options = (f"run.resume={json.dumps(origin(saved, job or saved))}", *options)
    from hatbus.jobs import jobrun

    prepared = jobrun.prepare(path, plugins, options)
    own = None if elsewhere else folder
    return jobrun.run(prepared, quiet=args.quiet, profile=args.profile, folder=own)


def folder_of(given: str) -> Path:
    """The folder of a run; of a place with several, that of the newest.

    Raises:
        JobError: it is neither.
    """
    folder = run_folder(option_values.path("DIR", given))
    if not (folder / JOB_FILE).is_file():
        raise JobError(f"no {JOB_FILE} in {given!r}; give the folder of a run, or that of its runs")
    return folder


def refuse_stage(path: Path) -> None:
    """Says how the stage of a HAT config goes on, which its ``job.json`` does not hold.

    Raises:
        JobError: it is one.
    """
    about = json.loads(path.read_text("utf-8")).get("hatbus", {})
    if about.get("config"):
        raise JobError(
            f"this run is a stage of a config; hatbus run {about['config']} --stage "
            f"{about['stage']} -o run.resume=auto goes on with it"
        )


def origin(saved: Job, job: Job) -> str:
    """What to resume from: the run's own checkpoints, or those of the folder that it leaves."""
    place = place_of_checkpoints(saved)
    return "auto" if place.resolve() == place_of_checkpoints(job).resolve() else str(place)


def place_of_checkpoints(job: Job) -> Path:
    """The folder that a job saves its checkpoints in."""
    from hatbus.cli.run import checkpoints_of

    name = checkpoints_of(job)[0]
    given = job.plugins[name].options.get("save_dir")
    return option_values.path("save_dir", given) if given else job.run_dir / name
