"""``hatbus run JOB``: trains what a job file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import JobError
from hatbus.jobs.command_line import change_options, show_log

if TYPE_CHECKING:
    import argparse

    from hatbus.jobs.job import Job


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    job_arguments(parser)
    training_options(parser)
    parser.epilog = "example: hatbus run job.toml -p tensorboard -p no:ema -o cos_lr.warmup_len=100"


def job_arguments(parser: argparse.ArgumentParser) -> None:
    """A job file, and what is otherwise in it."""
    parser.add_argument("job", metavar="JOB", help="the job file, such as job.toml")
    parser.add_argument(
        "--stage", metavar="NAME", help="of a HAT config (JOB.py, which is executed): float_trainer"
    )
    change_options(parser)


def training_options(parser: argparse.ArgumentParser) -> None:
    """What every command that trains takes beside."""
    parser.add_argument(
        "--profile", action="store_true", help="measure what plugins and loop cost per event"
    )
    parser.add_argument(
        "--limit-steps",
        type=int,
        metavar="N",
        help="a quick look: N steps, and N batches in each validation",
    )
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    parser.add_argument(
        "--drop-plugin-state",
        metavar="NAME",
        action="append",
        help="in a resume: leave out the saved state of a plugin",
    )
    parser.add_argument(
        "--override",
        metavar="KEY",
        action="append",
        help="in a resume: go on although this differs from the run that saved; 'all' for all",
    )


def run(args: argparse.Namespace) -> int:
    """Reads the job, then imports torch and trains.

    Raises:
        HatbusError: what is wrong with the job, or what went wrong in the run.
    """
    from hatbus.jobs.hat_config import read_stage
    from hatbus.jobs.job import parse_job
    from hatbus.loop.signals import ignore_saves
    from hatbus.parallel.stopping import end_agent_of_restart

    ignore_saves(ends_after=args.is_process, before_leaving=end_agent_of_restart)
    show_log(quiet=args.quiet)
    plugins, options = tuple(args.plugins), (*limits(args), *args.options)
    job: Job | None = None
    if Path(args.job).suffix == ".py":
        if args.drop_plugin_state or args.override:
            job, _ = read_stage(args.job, args.stage, plugins, options)
    else:
        job, _ = parse_job(args.job, plugins, options)  # told before torch is there
    if job is not None and (args.drop_plugin_state or args.override):
        refuse_without_resume(job)
        options = (*checkpoint_options(job, args.drop_plugin_state, args.override), *options)
    from hatbus.jobs import jobrun
    from hatbus.jobs.preparing import prepare

    prepared = prepare(args.job, plugins, options, args.stage)
    return jobrun.run(prepared, quiet=args.quiet, profile=args.profile)


def limits(args: argparse.Namespace) -> list[str]:
    """``--limit-steps`` as a word of ``-o``.

    Raises:
        JobError: it is less than 1.
    """
    if args.limit_steps is None:
        return []
    if args.limit_steps < 1:
        raise JobError(f"--limit-steps is {args.limit_steps}; accepted: 1 or more")
    return [f"run.limit_steps={args.limit_steps}"]


def refuse_without_resume(job: Job) -> None:
    """Refuses what is meant for a resume in a job that would start anew.

    Raises:
        JobError: it would.
    """
    saving = [job.plugins[name] for name in checkpoints_of(job)]
    if not job.run.resume and not any(plugin.options.get("resume") for plugin in saving):
        raise JobError(
            "--drop-plugin-state and --override are for a resume, and the job starts anew; "
            "add -o run.resume=auto"
        )


def checkpoint_options(
    job: Job, drop: list[str] | None = None, override: list[str] | None = None
) -> list[str]:
    """``--drop-plugin-state`` and ``--override`` as words of ``-o``; None: as the job says.

    Raises:
        JobError: the job has no checkpoint plugin.
    """
    values = {"drop_plugin_state": drop, "override": override}
    given = [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
    return [f"{name}.{word}" for name in checkpoints_of(job) for word in given]


def checkpoints_of(job: Job) -> list[str]:
    """The instance names of the job's checkpoint plugins.

    Raises:
        JobError: it has none.
    """
    names = [name for name, plugin in job.enabled.items() if plugin.use == "checkpoint"]
    if not names:
        raise JobError(f"{job.name} has no plugin 'checkpoint', so nothing was saved to go on from")
    return names
