"""``hatbus resume DIR``: goes on with a run from its newest good checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import JobError

if TYPE_CHECKING:
    import argparse

    from hatbus.job import Job

JOB_FILE = "job.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    from hatbus.cli import run as run_command

    parser.add_argument("dir", metavar="DIR", help="the run's folder (run_dir), with its job.json")
    parser.add_argument(
        "--drop-plugin-state",
        metavar="NAME",
        action="append",
        default=[],
        help="leave out the saved state of a plugin",
    )
    parser.add_argument(
        "--override",
        metavar="KEY",
        action="append",
        default=[],
        help="go on although this differs from the run that saved; 'all' for everything",
    )
    run_command.change_options(parser)
    run_command.training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the folder's job again with ``resume = "auto"``.

    Raises:
        HatbusError: there is no run to resume, or what went wrong in it.
    """
    from hatbus.cli.run import show_log
    from hatbus.job import read_job
    from hatbus.signals import ignore_saves

    ignore_saves()
    show_log(quiet=args.quiet)
    path = Path(args.dir) / JOB_FILE
    if not path.is_file():
        raise JobError(f"no {JOB_FILE} in {args.dir!r}; give the folder of a run (its run_dir)")
    name = checkpoint_of(read_job(path))
    options = [
        "run.resume=auto",
        f"run.run_dir={json.dumps(args.dir)}",
        f"{name}.drop_plugin_state={json.dumps(args.drop_plugin_state)}",
        f"{name}.override={json.dumps(args.override)}",
        *args.options,
    ]
    from hatbus import jobrun

    prepared = jobrun.prepare(path, tuple(args.plugins), tuple(options))
    return jobrun.run(prepared, quiet=args.quiet, profile=args.profile)


def checkpoint_of(job: Job) -> str:
    """The instance name of the job's checkpoint plugin.

    Raises:
        JobError: it has none.
    """
    for name, plugin in job.enabled.items():
        if plugin.use == "checkpoint":
            return name
    raise JobError(f"{job.name} has no plugin 'checkpoint', so nothing was saved to go on from")
