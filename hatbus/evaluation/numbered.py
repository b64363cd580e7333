"""One pass over any loader, with the places that the samples of each batch have in the data set."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from hatbus.data.workers import iterated

Numbered = tuple[list[int] | None, Any]
"""The places of a batch's samples, None where nobody can know; and the batch."""


def can_start_at(loader: Any) -> bool:
    """Whether a loader can be told which batch to begin with."""
    return hasattr(loader, "numbered_once") or hasattr(loader, "set_position")


def numbered(loader: Any, first: int = 0, *, equal: bool = False) -> Iterator[Numbered]:
    """One pass from the start, every sample on one rank only where the loader can be told.

    Args:
        loader: any iterable of batches.
        first: number of the batch to begin with, of a loader that can be told.
        equal: every rank has to have equally many batches, where the loader can be told.
    """
    if hasattr(loader, "numbered_once"):
        yield from loader.numbered_once(first, equal=equal)
    elif hasattr(loader, "set_position"):
        loader.set_position(0, first)
        yield from ((None, batch) for batch in iterated(loader))
    else:
        yield from _noted(loader)


def _noted(loader: Any) -> Iterator[Numbered]:
    """The batches of a loader that cannot be told; torch's own says what it asks for."""
    if not _asks_by_place(loader):
        yield from ((None, batch) for batch in iterated(loader))
        return
    noting, asked = copy.copy(loader), deque[Any]()
    noting.__dict__["batch_sampler"] = _Noting(loader.batch_sampler, asked)  # torch refuses others
    noting._iterator = None  # noqa: SLF001 - workers that persist have the other's places
    for batch in iterated(noting):
        places = asked.popleft()
        yield (places if all(type(place) is int for place in places) else None), batch


def _asks_by_place(loader: Any) -> bool:
    """Whether a loader, torch's own, gets its samples by their places, batch after batch."""
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
        and getattr(loader, "in_order", True)
    )


class _Noting:
    """A batch sampler that notes what it gives; a loader asks ahead of its workers, in order."""

    def __init__(self, sampler: Any, asked: deque[Any]) -> None:
        self._sampler, self._asked = sampler, asked

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        for places in self._sampler:
            self._asked.append([*places])
            yield places
