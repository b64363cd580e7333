"""``hatbus run JOB``: trains what a job file says."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    job_arguments(parser)
    training_options(parser)
    parser.epilog = "example: hatbus run job.toml -p tensorboard -p no:ema -o cos_lr.warmup_len=100"


def job_arguments(parser: argparse.ArgumentParser) -> None:
    """A job file, and what is otherwise in it."""
    parser.add_argument("job", metavar="JOB", help="the job file, such as job.toml")
    change_options(parser)


def change_options(parser: argparse.ArgumentParser) -> None:
    """What a job says otherwise, for one command."""
    parser.add_argument(
        "-p",
        dest="plugins",
        metavar="NAME",
        action="append",
        default=[],
        help="add a plugin with default options, or switch one off: no:NAME",
    )
    parser.add_argument(
        "-o",
        dest="options",
        metavar="NAME.KEY=VALUE",
        action="append",
        default=[],
        help="set an option of a plugin, or a key of the run: run.num_epochs=3",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def training_options(parser: argparse.ArgumentParser) -> None:
    """What every command that trains takes beside."""
    parser.add_argument(
        "--profile", action="store_true", help="measure what each plugin costs per event"
    )
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")


def run(args: argparse.Namespace) -> int:
    """Reads the job, then imports torch and trains.

    Raises:
        HatbusError: what is wrong with the job, or what went wrong in the run.
    """
    from hatbus.job import parse_job
    from hatbus.signals import ignore_saves

    ignore_saves()
    show_log(quiet=args.quiet)
    words = (args.job, tuple(args.plugins), tuple(args.options))
    parse_job(*words)  # a missing file is told before torch is imported
    from hatbus import jobrun

    return jobrun.run(jobrun.prepare(*words), quiet=args.quiet, profile=args.profile)


def show_log(*, quiet: bool) -> None:
    """Shows hatbus's log on stderr; of ranks other than 0, warnings only."""
    rank = int(os.environ.get("RANK", "0"))
    handler = _Stderr()
    handler.setLevel(logging.WARNING if quiet or rank else logging.INFO)
    handler.setFormatter(logging.Formatter(f"[rank {rank}] %(message)s" if rank else "%(message)s"))
    log = logging.getLogger("hatbus")
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if rank else logging.INFO)  # the run's own log is never quiet
    log.propagate = False


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is just now: a progress bar puts its own there."""

    @property
    def stream(self) -> Any:
        """The present stderr."""
        return sys.stderr

    @stream.setter
    def stream(self, value: object) -> None:
        """Keeps following stderr."""
