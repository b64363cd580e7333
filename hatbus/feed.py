"""One task's loader: its passes, its position, and moving batches to the device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from hatbus.control import log
from hatbus.errors import DataError

PASS_STRIDE = 1_000_003
"""Added to the epoch for every further pass over a loader within one epoch."""


class Feed:
    """Batches of one loader, pass after pass.

    A loader that can be told where to start (``set_position(epoch, batch)``, as those made by
    ``hatbus.data.loader``) is; any other is iterated and the batches behind us are thrown away.

    Attributes:
        name: how messages call the loader.
        length: batches in one pass; None when the loader has no length.
    """

    def __init__(self, loader: Any, task: str | None, device: Any = None) -> None:
        self.loader = loader
        self.name = "the loader" if task is None else f"the loader of task {task!r}"
        self.length = length_of(loader)
        if self.length == 0:
            raise DataError(f"{self.name} has length 0; check its data set, batch size, drop_last")
        self._device = device if device is not None and str(device) != "cpu" else None
        self._epoch = self._pass = self._taken = 0
        self._iterator: Iterator[Any] | None = None

    def start(self, epoch: int, behind: int, group: int) -> None:
        """Goes to a place in an epoch.

        Args:
            epoch: the epoch.
            behind: batches of this epoch that lie behind us, whole groups counted in full.
            group: batches per group; a pass's last group may have been smaller.
        """
        self._epoch, self._pass, self._taken = epoch, 0, behind
        if self.length is not None:
            per_pass = -(-self.length // group)
            self._pass, groups = divmod(behind // group, per_pass)
            self._taken = groups * group
        self._iterator = None

    def fetch(self) -> Iterator[Any]:
        """The rest of the present pass, batch by batch, on the device."""
        iterator = self._open()
        if self._device is None:
            return iterator
        device = self._device
        return (moved(batch, device) for batch in iterator)

    def group(self, size: int, *, endless: bool) -> list[Any]:
        """Up to ``size`` batches of one pass; a new pass is begun when this one is over.

        Args:
            size: batches wanted.
            endless: begin a new pass at the end; otherwise the end gives an empty list.
        """
        if self._iterator is None:
            self._iterator = self.fetch()
        found = list(islice(self._iterator, size))
        if not found and endless:
            self._pass, self._taken = self._pass + 1, 0
            self._iterator = self.fetch()
            found = list(islice(self._iterator, size))
            if not found:
                raise DataError(f"{self.name} gave no batch in its pass {self._pass + 1}")
        return found

    def _open(self) -> Iterator[Any]:
        key = self._epoch + self._pass * PASS_STRIDE
        if hasattr(self.loader, "set_position"):
            self.loader.set_position(key, self._taken)
            return iter(self.loader)
        for part in (self.loader, *(getattr(self.loader, n, None) for n in _SAMPLERS)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(key)
        iterator = iter(self.loader)
        if self._taken:
            log.info("%s cannot be positioned: replaying %d batches", self.name, self._taken)
            for _ in islice(iterator, self._taken):
                pass
        return iterator


_SAMPLERS = ("sampler", "batch_sampler", "dataset")


def length_of(loader: Any) -> int | None:
    """Batches in one pass, or None.

    Raises:
        DataError: what was given cannot be iterated.
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise DataError(f"{loader!r} is no loader; accepted: an iterable of batches")
    if inspect.isgenerator(loader):
        raise DataError(
            "a generator can be passed over only once; give an object whose __iter__ starts anew"
        )
    try:
        return len(loader)
    except TypeError:  # torch raises it for an IterableDataset without a length
        return None


def moved(batch: Any, device: Any) -> Any:
    """A batch with every tensor in it on the device (tuples, lists and mappings kept)."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return type(batch)({k: moved(v, device) for k, v in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(v, device) for v in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(moved(v, device) for v in batch)
    return batch.to(device) if hasattr(batch, "to") else batch
