"""How many samples a batch holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def samples_in(batch: Any) -> int | None:
    """The length of the first tensor that is not empty; 0 if all are, None if none has a length.

    Looks into mappings, tuples and lists, in order. Only sizes are read, never values, so nothing
    waits for the device.
    """
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.dim() else None
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (tuple, list)):
        return None
    found = None
    for part in batch:
        size = samples_in(part)
        if size:
            return size
        found = found if size is None else size
    return found
