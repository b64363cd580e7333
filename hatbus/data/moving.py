"""Moving a batch to the device, whatever it is made of."""

from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final


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
