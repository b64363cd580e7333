"""Many runs: found below a place, named, filtered and sorted; without torch."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus.errors import JobError, did_you_mean
from hatbus.option_values import short
from hatbus.runs.summary import FAILED, LOCK_FILE, RUNNING, SUMMARY_FILE, Summary, read_summary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DEEP: Final = 3
"""So many folders below a place are looked into."""
_CONDITION: Final = re.compile(r"\s*(.+?)\s*(<=|>=|<|>)\s*([^<>=]+?)\s*")
GONE: Final = "its process is gone"
KINDS: Final = ("last", "min", "max")


class Run(NamedTuple):
    """A run that was found.

    Attributes:
        name: of its folder, below the place.
        folder: of its files.
        summary: of it; one whose process is gone has failed.
    """

    name: str
    folder: Path
    summary: Summary

    def mode(self, metric: str) -> str:
        """Which value of a metric is best: as the run's plugins judge, else by its name."""
        for name, mode in self.summary.judged.items():
            if metric == name or metric.endswith(f"/{name}"):
                return mode
        return "min" if re.search(r"loss|error|time", metric.rpartition("/")[2]) else "max"

    def value(self, metric: str, kind: str) -> float | None:
        """A metric's ``"last"``, ``"min"``, ``"max"`` or ``"best"`` value; None without one."""
        known = self.summary.metrics.get(metric)
        if known is None:
            return None
        return known[self.mode(metric) if kind == "best" else kind]


def runs_below(place: Path) -> list[Run]:
    """The runs in a place and its folders, or of a run's folder itself; the newest last.

    Raises:
        JobError: there is no such folder, or no run.
    """
    if not place.is_dir():
        raise JobError(f"no folder {str(short(place))!r}; give one with runs, such as 'runs'")
    found = [Run(name or place.name, Path(path), s) for name, path, s in _found(str(place), "", 0)]
    if not found:
        raise JobError(f"no run in {str(short(place))!r}; `hatbus run JOB` makes one")
    return sorted(found, key=lambda run: (run.summary.started, run.name))


def _found(place: str, name: str, deep: int) -> Iterator[tuple[str, str, Summary]]:
    own = read_summary(place) if deep or os.path.exists(f"{place}/{SUMMARY_FILE}") else None  # noqa: PTH110 - of hundreds
    if own is not None:
        if own.state == RUNNING:
            from hatbus.runs.lock import is_held

            if not is_held(Path(place, LOCK_FILE)):
                own.state, own.reason = FAILED, GONE
        yield name, place, own
        return
    if deep >= _DEEP:
        return
    try:
        inside = sorted(entry.name for entry in os.scandir(place) if _is_folder(entry))
    except OSError:
        return
    for one in inside:
        yield from _found(f"{place}/{one}", f"{name}/{one}" if name else one, deep + 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.name[0] != "." and entry.is_dir(follow_symlinks=False)


def run_named(word: str, place: Path) -> Run:
    """A run by its folder, or by its name, or its name's end, below a place.

    Raises:
        JobError: there is none, or several.
    """
    from hatbus.runs.folders import run_folder

    folder = run_folder(Path(word))
    if (folder / SUMMARY_FILE).is_file():
        (run,) = runs_below(folder)
        return Run(str(short(folder.absolute())), folder, run.summary)
    runs = runs_below(place) if place.is_dir() else []
    ends = [run for run in runs if run.name == word] or [
        run for run in runs if run.name.endswith(word)
    ]
    if len(ends) == 1:
        return ends[0]
    if ends:
        names = ", ".join(run.name for run in ends)
        raise JobError(f"several runs are named {word!r}: {names}; give one in full")
    hint = did_you_mean(word, [run.name for run in runs])
    raise JobError(f"no run {word!r} in {str(short(place))!r}{hint}")


def metric_named(word: str, runs: Sequence[Run]) -> str:
    """A metric of some run, in full or by the end of its name.

    Raises:
        JobError: no run has it.
    """
    known = dict.fromkeys(name for run in runs for name in run.summary.metrics)
    ends = [name for name in known if name.endswith(f"/{word}")]
    if word in known or len(ends) == 1:
        return word if word in known else ends[0]
    raise JobError(f"no run has a metric {word!r}{did_you_mean(word, ends or known)}")


def where(condition: str, runs: Sequence[Run]) -> list[Run]:
    """The runs whose best value of a metric fulfils a condition, such as ``"val/accuracy>0.9"``.

    Raises:
        JobError: it is no condition.
    """
    match = _CONDITION.fullmatch(condition)
    try:
        word, sign, bound = match.group(1), match.group(2), float(match.group(3))  # type: ignore[union-attr]  # handled below
    except (AttributeError, ValueError):
        raise JobError(
            f"--where is {condition!r}; accepted: METRIC>NUMBER, or with <, >=, <="
        ) from None
    metric = metric_named(word, runs)
    return [run for run in runs if _holds(run.value(metric, "best"), sign, bound)]


def chosen(
    runs: list[Run],
    conditions: Sequence[str] = (),
    state: str | None = None,
    sort: str | None = None,
) -> list[Run]:
    """The runs that fulfil all conditions and are in a state; the best in a metric first.

    Raises:
        JobError: no run has a metric that is named.
    """
    found = runs
    for condition in conditions:
        these = where(condition, runs)
        found = [run for run in found if run in these]
    if state:
        found = [run for run in found if run.summary.state == state]
    return by_metric(metric_named(sort, runs), found) if sort else found


def _holds(value: float | None, sign: str, bound: float) -> bool:
    if value is None:
        return False
    is_so = value > bound if sign[0] == ">" else value < bound
    return is_so or (sign[-1] == "=" and value == bound)


def by_metric(metric: str, runs: Sequence[Run]) -> list[Run]:
    """The runs, the best first, those without the metric last."""

    def key(run: Run) -> tuple[bool, float]:
        value = run.value(metric, "best")
        if value is None or math.isnan(value):
            return True, 0.0
        return False, value if run.mode(metric) == "min" else -value

    return sorted(runs, key=key)


def as_json(run: Run) -> dict[str, Any]:
    """A run as plain data; what is not finite is None."""
    summary = run.summary
    metrics = {
        name: {kind: plain(run.value(name, kind)) for kind in (*KINDS, "best")}
        for name in summary.metrics
    }
    return {
        "name": run.name,
        "folder": str(run.folder),
        "job": summary.job,
        "changes": summary.changes,
        "started": summary.started,
        "updated": summary.updated,
        "state": summary.state,
        "reason": summary.reason,
        "epochs": summary.epochs,
        "steps": summary.steps,
        "metrics": metrics,
    }


def plain(value: float | None) -> float | None:
    """A value for JSON, which knows no NaN and no infinity."""
    return value if value is not None and abs(value) < float("inf") else None
