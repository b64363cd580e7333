"""What every command shares that takes a job: what is otherwise in it, and the log on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

from hatbus.parallel.launch import leave_with_agent, rank_and_world

if TYPE_CHECKING:
    import argparse


def change_options(parser: argparse.ArgumentParser) -> None:
    """What a job says otherwise, for one command."""
    parser.add_argument(
        "-p",
        dest="plugins",
        metavar="NAME",
        action="append",
        default=[],
        help="add a plugin with default options, or FILE.py:Class, or switch one off: no:NAME",
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


def show_log(*, quiet: bool) -> None:
    """Shows hatbus's log on stderr; of ranks other than 0, warnings only."""
    rank, _ = rank_and_world()
    leave_with_agent()
    handler = _Stderr()
    handler.setLevel(logging.WARNING if quiet or rank else logging.INFO)
    handler.setFormatter(logging.Formatter(f"[rank {rank}] %(message)s" if rank else "%(message)s"))
    log = logging.getLogger("hatbus")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)  # the run's own log is never quiet
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
