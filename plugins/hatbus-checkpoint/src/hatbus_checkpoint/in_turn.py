"""Rows of several processes, each once and in the order of the data set."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.utils.data import DistributedSampler, SequentialSampler

Rows = list[tuple[int, Any]]


class AsTheyCome:
    """Rows of one process: all of them, in the order that its loader gives.

    Args:
        done: rows that were given on before.
        known: their places.
    """

    held = False
    """Whether some rows wait for others."""

    def __init__(self, done: int, known: Collection[int] = ()) -> None:
        self.done, self.known = done, set(known)

    def next_of(self, rows: Rows) -> Rows:
        """Those whose turn it is."""
        return rows

    def rest(self) -> Rows:
        """Those that still wait."""
        return []


class EachOnce(AsTheyCome):
    """Rows of several processes; a sampler that fills its last batches up gives some twice."""

    def next_of(self, rows: Rows) -> Rows:
        """Those that were not there yet."""
        new = {place: row for place, row in rows if place not in self.known}
        self.known.update(new)
        return [*new.items()]


class InOrder(AsTheyCome):
    """Rows of several processes in the order of the data set.

    The processes get equally many batches of unequal sizes, so near the end one may be ahead of
    another: then its rows wait.
    """

    def __init__(self, done: int, known: Collection[int] = ()) -> None:
        super().__init__(done, known)
        self._waiting: dict[int, Any] = {}

    @property
    def held(self) -> bool:  # type: ignore[override]  # above it never changes
        """Whether some rows wait for others."""
        return bool(self._waiting)

    def next_of(self, rows: Rows) -> Rows:
        """Those of the rows, and of the ones that waited, whose turn it is."""
        self._waiting |= {place: row for place, row in rows if place >= self.done}
        found = []
        while self.done in self._waiting:
            found.append((self.done, self._waiting.pop(self.done)))
            self.done += 1
        return found

    def rest(self) -> Rows:
        """Those that still wait, in order."""
        found, self._waiting = sorted(self._waiting.items()), {}
        return found


def keeps_order(loader: Any) -> bool:
    """Whether a loader goes through its data set from the first sample to the last."""
    order = getattr(loader, "order", None)
    if order is not None:
        return not getattr(order, "shuffle", True)
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        return not sampler.shuffle
    return isinstance(sampler, SequentialSampler)
