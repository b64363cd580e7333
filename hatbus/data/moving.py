"""Moving a batch to the device, whatever it is made of."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from types import SimpleNamespace
from typing import Any, Final

import torch


def to_device(batch: Any, device: Any) -> Any:
    """A batch with every tensor in it on the device, without waiting for it.

    What has a ``to`` of its own moves itself (tensors, packed sequences, a tokenizer's batches).
    Tuples, lists, deques, sets, mappings, dataclasses, classes of attrs and ``SimpleNamespace`` are
    made anew, of their own type; the one that was given stays as it is. Any other object is handed
    on untouched: give its class a ``to(device)``.
    """
    if hasattr(batch, "to") and not isinstance(batch, type):
        return _moved_itself(batch, device)
    for kind, made in _WAYS:
        if isinstance(batch, kind):
            return made(batch, device)
    fields = fields_of(batch)
    return batch if fields is None else _moved_record(batch, fields, device)


def moved_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Batches on a GPU, each copied there while the step before it is computed.

    The copies run on a stream of their own. It waits for what was queued before, so memory of a
    batch that is let go is written to again only when nobody reads it any more.

    Args:
        batches: in pinned memory, else a copy waits anyway; one more than is handed out is read.
        device: a CUDA device.
    """
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: deque[tuple[Any, torch.cuda.Event]] = deque()

    def copy_next() -> None:
        for batch in islice(batches, 1):
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                moved = to_device(batch, device)
            waiting.append((moved, side.record_event()))

    copy_next()
    while waiting:
        moved, is_there = waiting.popleft()
        torch.cuda.current_stream(device).wait_event(is_there)
        copy_next()
        yield moved


def is_pinned(batch: Any) -> bool:
    """Whether a batch, or the first part of it, is a tensor in pinned memory."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (tuple, list)):
        return bool(batch) and is_pinned(batch[0])
    return isinstance(batch, torch.Tensor) and batch.is_pinned()


def fields_of(part: Any) -> dict[str, Any] | None:
    """The fields of a dataclass, a class of attrs or a ``SimpleNamespace``, by name; else None."""
    kind = type(part)
    if isinstance(part, SimpleNamespace):
        return dict(vars(part))
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    elif hasattr(kind, "__attrs_attrs__"):
        names = [field.name for field in kind.__attrs_attrs__]
    else:
        return None
    return {name: getattr(part, name) for name in names if hasattr(part, name)}


def _moved_itself(part: Any, device: Any) -> Any:
    try:
        return part.to(device, non_blocking=True)
    except TypeError:  # a `to` of the user's own that takes the device alone
        return part.to(device)


def _moved_mapping(batch: Any, device: Any) -> Any:
    items = {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, dict):
        made = copy.copy(batch)  # a defaultdict has more than its items
        for name, value in items.items():  # an output of Transformers refuses update()
            made[name] = value
        return made
    return type(batch)(items)


def _moved_tuple(batch: Any, device: Any) -> Any:
    values = [to_device(v, device) for v in batch]
    if type(batch) is tuple:
        return tuple(values)
    if type(batch).__module__ == "torch.return_types":  # of torch.max, torch.topk and the like
        return type(batch)(values)
    if hasattr(batch, "_fields"):
        return type(batch)(*values)
    return type(batch)(values)


def _moved_list(batch: Any, device: Any) -> Any:
    rows = [to_device(v, device) for v in batch]
    if type(batch) is list:
        return rows
    made = copy.copy(batch)  # a subclass may have more than its rows
    made[:] = rows
    return made


def _moved_deque(batch: Any, device: Any) -> Any:
    return type(batch)((to_device(v, device) for v in batch), batch.maxlen)


def _moved_set(batch: Any, device: Any) -> Any:
    return type(batch)(to_device(v, device) for v in batch)


def _moved_record(batch: Any, fields: Mapping[str, Any], device: Any) -> Any:
    """A copy with its tensors moved: no constructor runs, so nothing is derived a second time."""
    made = copy.copy(batch)
    for name, value in fields.items():
        there = to_device(value, device)
        if there is not value:
            object.__setattr__(made, name, there)  # also of a frozen one
    return made


_WAYS: Final = (
    (tuple, _moved_tuple),
    (list, _moved_list),
    (Mapping, _moved_mapping),
    (deque, _moved_deque),
    ((set, frozenset), _moved_set),
)
"""How what is made of parts is made anew; the usual first."""
