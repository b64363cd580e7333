"""Whether two state trees hold the same, bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import torch

from hatbus.parallel import is_shard, local_tensor
from hatbus_checkpoint.tensor_file import flat_bytes

_SEQUENCES: Final = (list, tuple, deque)


def differing(one: Any, other: Any, path: str = "") -> str | None:
    """Where two trees first differ, such as ``"0/exp_avg"``; None where they do not.

    A tensor's device does not count: a state comes from the host and goes where it belongs.
    """
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if _is_same(one, other) else path
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return path or "its keys"
        pairs = [(key, one[key], other[key]) for key in one]
    elif isinstance(one, _SEQUENCES) and type(one) is type(other):
        if len(one) != len(other) or getattr(one, "maxlen", 0) != getattr(other, "maxlen", 0):
            return path
        pairs = [(i, *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if type(one) is type(other) and repr(one) == repr(other) else path
    found = (differing(a, b, f"{path}/{key}".lstrip("/")) for key, a, b in pairs)
    return next((place for place in found if place is not None), None)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same bits: NaN is the same as itself."""
    if one.dtype != other.dtype or one.shape != other.shape or is_shard(one) != is_shard(other):
        return False
    return torch.equal(flat_bytes(local_tensor(one)), flat_bytes(local_tensor(other)))
