"""``hatbus deliver RUN``: delivers what trackers could not while the run was on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hatbus import option_values
from hatbus.errors import JobError
from hatbus.runs.folders import run_folder
from hatbus.runs.lock import is_held
from hatbus.runs.summary import LOCK_FILE, read_summary

if TYPE_CHECKING:
    import argparse

_ENDS: Final = ("finished", "stopped", "failed")
_NOT_ALL: Final = 6


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "run", metavar="RUN", help="the run's folder; of one with several, the newest"
    )
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="how long a service may take (default: 600)"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def run(args: argparse.Namespace) -> int:
    """Delivers, and says what is left.

    Returns:
        0, or 6 when something is left.

    Raises:
        JobError: no run, one that is going on, or one without a tracker.
    """
    folder = run_folder(option_values.path("RUN", args.run))
    option_values.number("--seconds", args.seconds, above=True)
    summary = read_summary(folder)
    if not folder.is_dir():
        raise JobError(f"no run in {args.run!r}; give the folder of a run, or that of its runs")
    if is_held(folder / LOCK_FILE):
        raise JobError(f"the run in {args.run!r} is going on, and delivers by itself")
    from hatbus.jobs.command_line import show_log
    from hatbus.tracking.later import deliver_rest, trackers_in

    show_log(quiet=False)
    found = trackers_in(folder)
    if not found:
        raise JobError(f"no tracker has left anything in {args.run!r}")
    state = summary.state if summary is not None and summary.state in _ENDS else "stopped"
    code = 0
    for name, points, left in deliver_rest(found, state, args.seconds):
        print(f"{name}: {points - left} points delivered" + (f", {left} left" if left else ""))
        code = _NOT_ALL if left else code
    return code
