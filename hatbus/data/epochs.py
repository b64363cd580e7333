"""Who in a loader wants to know the epoch, and telling them.

``set_epoch`` is torch's own word (``DistributedSampler``), and that of many samplers and data sets:
another order, another choice of negatives, a harder curriculum in every epoch. It may stand in a
sampler inside a ``BatchSampler``, or in a data set below ``Subset``, ``ConcatDataset`` or a wrapper
of one's own, none of which pass it on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

_MANY: Final = 1000
"""A list that is longer holds samples, not data sets."""
_DEEP: Final = 3
"""Lists in lists that are looked into."""
_OF_LOADERS: Final = ("sampler", "batch_sampler", "dataset")
_LEAVES: Final = (torch.Tensor, torch.nn.Module, torch.Generator, str, bytes, type)


def listeners(part: Any) -> list[Any]:
    """What has ``set_epoch`` in a loader, sampler or data set, from the outside in, each once.

    What has it answers for what it wraps itself; only a loader is looked into even then.
    """
    found: list[Any] = []
    _listen(part, found, set())
    return found


def tell_epoch(part: Any, epoch: int) -> bool:
    """Calls every ``set_epoch`` in a loader, sampler or data set; says whether there was one."""
    told = listeners(part)
    for one in told:
        one.set_epoch(epoch)
    return bool(told)


def parts_of(part: Any) -> list[Any]:
    """A loader, sampler or data set, and all of these that it holds, from the outside in."""
    found: list[Any] = []
    waiting = [part]
    while waiting:
        one = waiting.pop(0)
        if not any(one is other for other in found):
            found.append(one)
            waiting += _wrapped(one)
    return found


def _listen(part: Any, found: list[Any], seen: set[int]) -> None:
    if id(part) in seen:
        return
    seen.add(id(part))
    if callable(getattr(part, "set_epoch", None)):
        found.append(part)
        if isinstance(part, (Sampler, Dataset)) or not any(hasattr(part, n) for n in _OF_LOADERS):
            return
    for one in _wrapped(part):
        _listen(one, found, seen)


def _wrapped(part: Any) -> Iterator[Any]:
    """The samplers and data sets that an object holds, alone or in short lists and mappings."""
    for value in list(getattr(part, "__dict__", {}).values()):
        yield from _alone(value, _DEEP)


def _alone(value: Any, deep: int) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        if _may_listen(value):
            yield value
    elif deep and len(value) <= _MANY:
        for one in value:
            yield from _alone(one, deep - 1)


def _may_listen(value: Any) -> bool:
    if isinstance(value, _LEAVES):
        return False
    if isinstance(value, (Dataset, Sampler, DataLoader)) or hasattr(value, "set_epoch"):
        return True
    kind = type(value)  # a data set needs no base class; a builtin container is none
    is_indexed = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    return is_indexed and hasattr(value, "__dict__") and kind.__module__ != "numpy"
