"""Which checkpoints a run no longer needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hatbus import option_values
from hatbus.errors import JobError
from hatbus_checkpoint.folder import Entry

FEWEST = 2
"""Never fewer are kept: when the newest is damaged, there is another."""


def superfluous(
    entries: Iterable[Entry],
    run: str,
    keep_last: int | None,
    keep_best: int | None,
    metric: tuple[str, str | None],
    marked: str = "",
) -> list[Entry]:
    """The checkpoints to remove, oldest first.

    Args:
        entries: all of the folder that are not known to be damaged; only those of this run are
            ever returned.
        run: id of the run.
        keep_last: newest ones to keep; None: all, or as few as allowed beside ``keep_best``.
        keep_best: best ones to keep; None: those that are kept anyway.
        metric: name and mode of what decides on best; only checkpoints with that are ranked.
        marked: name of the one that is called best, which is kept: where the metric was changed,
            none has the new one yet.
    """
    if keep_last is None and keep_best is None:
        return []
    mine = [e for e in entries if not e.fault and e.manifest["run"] == run]
    mine.sort(key=lambda e: e.age)
    by_step = {e.manifest["progress"]["global_step"]: e for e in mine}
    counted = list(by_step.values())  # one saved again took the place of one that was damaged
    newest = counted[-max(keep_last or FEWEST, FEWEST) :]
    ranked = sorted((e for e in counted if _metric_of(e) == metric), key=_rank)
    kept = {e.path.name for e in [*newest, *ranked[: max(keep_best or 0, 1)]]} | {marked}
    return [e for e in mine if e.path.name not in kept]


def best_of(entries: list[Entry], metric: tuple[str, str | None]) -> Entry | None:
    """The best of some checkpoints by what decides on best; None where none has that."""
    ranked = sorted((e for e in entries if _metric_of(e) == metric), key=_rank)
    return ranked[0] if ranked else None


def check_kept(keep_last: Any, keep_best: Any, mode: str | None) -> None:
    """Refuses retention that would leave too little."""
    if keep_last is not None and not (isinstance(keep_last, int) and keep_last >= FEWEST):
        raise JobError(
            f"checkpoint: keep_last is {keep_last!r}; accepted: a whole number of at least "
            f"{FEWEST}, so that there is another when the newest is damaged"
        )
    if keep_best is not None:
        option_values.whole("checkpoint: keep_best", keep_best, 1)
    if keep_best is not None and mode is None:
        raise JobError("checkpoint: keep_best needs mode ('min' or 'max') and monitor_metric_key")


def _metric_of(entry: Entry) -> tuple[str, str] | None:
    """Name and mode of what decided on best when a checkpoint was saved; None: nothing new did."""
    best = entry.manifest.get("best")
    if best is None or not best.get("fresh", True):
        return None
    return best.get("metric"), best.get("mode")


def _rank(entry: Entry) -> tuple[float, int]:
    """Sorts best first; of equals the earlier one."""
    best = entry.manifest["best"]
    value = best["value"] if best["mode"] == "min" else -best["value"]
    return (value, entry.manifest["progress"]["global_step"])
