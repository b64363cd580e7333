"""``hatbus runs clean``: removes runs, after it has said what that frees and asked."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import JobError, SaveError
from hatbus.runs.folders import LATEST, RunFolder, Wanted, lock_of, run_folder, runs_of
from hatbus.runs.listing import chosen, run_named, runs_below
from hatbus.runs.summary import FAILED, RUNNING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from hatbus.runs.listing import Run


def clean(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Removes the runs that are named, or those that the options choose: else the failed ones.

    Raises:
        HatbusError: there is no such run, one is still going on, or one cannot be removed.
    """
    place = Path(args.place)
    if words:
        runs = [run_named(word, place) for word in words]
    else:
        state = args.state or (None if args.where else FAILED)
        found = chosen(runs_below(place), args.where, state)
        runs = [run for run in found if run.summary.state != RUNNING]
    busy = [run.name for run in runs if run.summary.state == RUNNING]
    if busy:
        raise JobError(f"still going on: {', '.join(busy)}; stop them first")
    sizes = {run.name: size_of(run.folder) for run in runs}
    if args.json:
        print(json.dumps(sizes, indent=2))
    else:
        _tell(runs, sizes)
    if not runs or not (args.yes or _agreed(len(runs))):
        return 0
    for run in runs:
        remove(run.folder)
    if not args.json:
        print(f"removed {len(runs)} runs")
    return 0


def _tell(runs: Sequence[Run], sizes: dict[str, int]) -> None:
    from hatbus.cli.display import show_rows

    if not runs:
        print("nothing to remove; --state, --where, or the names of runs choose others")
        return
    rows = [
        (run.name, run.summary.state, f"{sizes[run.name] / 2**20:.1f} MiB", run.summary.reason)
        for run in runs
    ]
    show_rows(rows)
    print(f"would free {sum(sizes.values()) / 2**20:.1f} MiB in {len(runs)} runs")


def _agreed(many: int) -> bool:
    if not sys.stdin.isatty():
        print(
            "nothing was removed: nobody is here to be asked; --yes removes them", file=sys.stderr
        )
        return False
    try:
        return input(f"remove {many} runs with all their files? [y/N] ").strip().lower() == "y"
    except EOFError:
        return False


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; links are not followed."""
    files = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files)


def remove(folder: Path) -> None:
    """Removes a run's folder; ``latest`` then leads to the newest that is left.

    Raises:
        JobError: the run is still going on.
        SaveError: it cannot be removed.
    """
    lock = lock_of(folder)
    link = folder.parent / LATEST
    was_latest = run_folder(link) == folder
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise SaveError(f"cannot remove {str(folder)!r}: {error.strerror}") from error
    finally:
        lock.release()
    if was_latest:
        left = sorted(runs_of(folder.parent), key=lambda run: run[1].started)
        link.unlink(missing_ok=True)
        if left:
            RunFolder(left[-1][0], Wanted(folder.parent)).is_latest()
