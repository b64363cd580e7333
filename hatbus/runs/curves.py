"""The curves of runs: ``history.jsonl`` in a run's folder, and what logs beside it hold."""

from __future__ import annotations

import csv
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hatbus.runs.listing import Run

CURVES_FILE: Final = "history.jsonl"
"""A row per end of an epoch or validation: ``step``, the number of steps so far, and metrics."""
_LOGS: Final = ("log.jsonl", "log.csv")
Points = list[tuple[int, float]]


def forget_after(path: Path, steps: int) -> None:
    """Takes out of a history what a run that goes on after so many steps will do again.

    Raises:
        OSError: it cannot be written.
    """
    if not path.exists():
        return
    kept = [row for row in rows_of(path) if row.get("step", 0) <= steps]
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept if steps), "utf-8")
    partial.replace(path)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, without one that was cut off."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                yield from csv.DictReader(file)
                return
            for line in file:
                with suppress(ValueError):
                    row = json.loads(line)
                    if isinstance(row, dict):
                        yield row
    except OSError:
        return


def curve(run: Run, metric: str) -> Points:
    """``(steps so far, value)`` of a run, from the log that has most points of it.

    Raises:
        JobError: the run has no such metric.
    """
    history = _points(run.folder / CURVES_FILE, metric, 0)
    logged = (_points(run.folder / name, metric, 1) for name in _LOGS)
    found = max([history, *logged], key=len)
    if not found:
        hint = did_you_mean(metric, run.summary.metrics)
        raise JobError(f"run {run.name!r} has no metric {metric!r}{hint}")
    return found


def _points(path: Path, metric: str, more: int) -> Points:
    """The last value of each step; logs count steps from 0."""
    found = {}
    for row in rows_of(path):
        with suppress(KeyError, TypeError, ValueError):
            found[int(row["step"]) + more] = float(row[metric])
    return sorted(found.items())
