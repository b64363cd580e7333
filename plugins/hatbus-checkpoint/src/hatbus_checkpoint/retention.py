"""Which checkpoints a run no longer needs."""

from __future__ import annotations

from collections.abc import Iterable

from hatbus_checkpoint.folder import Entry

FEWEST = 2
"""Never fewer are kept: when the newest is damaged, there is another."""


def superfluous(
    entries: Iterable[Entry], run: str, keep_last: int | None, keep_best: int | None, mode: str
) -> list[Entry]:
    """The checkpoints to remove, oldest first.

    Args:
        entries: all of the folder; only those of this run are ever returned.
        run: id of the run.
        keep_last: newest ones to keep; None: all, or as few as allowed beside ``keep_best``.
        keep_best: best ones to keep; None: those that are kept anyway.
        mode: ``"min"`` or ``"max"``: what is best.
    """
    if keep_last is None and keep_best is None:
        return []
    mine = [e for e in entries if not e.fault and e.manifest["run"] == run]
    mine.sort(key=lambda e: e.age)
    newest = mine[-max(keep_last or FEWEST, FEWEST) :]
    ranked = sorted((e for e in mine if value_of(e) is not None), key=lambda e: _rank(e, mode))
    kept = {e.path for e in [*newest, *ranked[: max(keep_best or 0, 1)]]}
    return [e for e in mine if e.path not in kept]


def value_of(entry: Entry) -> float | None:
    """The value that decides on best, when the checkpoint has one."""
    best = entry.manifest.get("best")
    return None if best is None else best["value"]


def _rank(entry: Entry, mode: str) -> tuple[float, int]:
    """Sorts best first; of equals the earlier one."""
    value = value_of(entry) or 0.0
    return (value if mode == "min" else -value, entry.manifest["progress"]["global_step"])
