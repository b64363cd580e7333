"""Which checkpoints a run no longer needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from hatbus import option_values
from hatbus.errors import JobError
from hatbus_checkpoint.folder import CheckpointFolder, Entry

FEWEST = 2
"""Never fewer are kept: when the newest is damaged, there is another."""


class Ranking(NamedTuple):
    """One of the things that decide on best.

    Attributes:
        name: of a further one; empty for the plugin's own.
        metric: that it goes by.
        mode: ``"min"`` or ``"max"``; None: there is no best.
        keep_best: best ones to keep; None: those that are kept anyway.
        marked: name of the one that is called best, which is kept: where the metric was changed,
            none has the new one yet.
    """

    name: str
    metric: str
    mode: str | None
    keep_best: int | None = None
    marked: str = ""

    def ranked(self, entries: Iterable[Entry]) -> list[Entry]:
        """The checkpoints with a new value of the metric, best first; of equals the earlier."""
        found = [(_of(e, self.name), e) for e in entries]
        mine = [(r, e) for r, e in found if r and (r["metric"], r["mode"]) == self[1:3]]
        return [e for r, e in sorted(mine, key=lambda pair: _rank(*pair))]


def superfluous(
    entries: Iterable[Entry], run: str, keep_last: int | None, rankings: Sequence[Ranking]
) -> list[Entry]:
    """The checkpoints to remove, oldest first.

    Args:
        entries: all of the folder that are not known to be damaged; only those of this run are
            ever returned.
        run: id of the run.
        keep_last: newest ones to keep; None: all, or as few as allowed beside ``keep_best``.
        rankings: what decides on best.
    """
    if keep_last is None and all(one.keep_best is None for one in rankings):
        return []
    mine = [e for e in entries if not e.fault and e.manifest["run"] == run]
    mine.sort(key=lambda e: e.age)
    by_step = {e.manifest["progress"]["global_step"]: e for e in mine}
    counted = list(by_step.values())  # one saved again took the place of one that was damaged
    newest = counted[-max(keep_last or FEWEST, FEWEST) :]
    best = [e for one in rankings for e in one.ranked(counted)[: one.keep_best or 1]]
    kept = {e.path.name for e in [*newest, *best]} | {one.marked for one in rankings}
    return [e for e in mine if e.path.name not in kept]


def retire(
    folder: CheckpointFolder, run: str, keep_last: int | None, rankings: Sequence[Ranking]
) -> None:
    """Removes what a run no longer needs; one that was found damaged takes no place, and stays.

    Raises:
        OSError: the disk failed.
    """
    entries = [e for e in folder.of_run(run) if e.path not in folder.passed_over]
    for old in superfluous(entries, run, keep_last, rankings):
        folder.remove(old.path)


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


def _of(entry: Entry, name: str) -> dict[str, Any] | None:
    """What decided on a best when a checkpoint was saved; None: nothing new did."""
    found = entry.manifest
    best = found.get("bests", {}).get(name) if name else found.get("best")
    if best is None or not best.get("fresh", True):
        return None
    return {"metric": best.get("metric"), "mode": best.get("mode"), "value": best["value"]}


def _rank(best: dict[str, Any], entry: Entry) -> tuple[float, int]:
    """Sorts best first; of equals the earlier one."""
    value = best["value"] if best["mode"] == "min" else -best["value"]
    return (value, entry.manifest["progress"]["global_step"])
