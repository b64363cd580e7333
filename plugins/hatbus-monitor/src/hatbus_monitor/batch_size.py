"""How many samples a batch holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def samples_in(batch: Any) -> int:
    """The first dimension of the first tensor in a batch; 0 when there is none.

    Only sizes are read, never values, so nothing waits for the device.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 1
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (tuple, list)):
        return 0
    for part in batch:
        found = samples_in(part)
        if found:
            return found
    return 0


def samples_of_step(batches: list[tuple[str | None, Any, float]]) -> int:
    """Samples in all batches of a step."""
    if len(batches) == 1:
        batch = batches[0][1]
        if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
            first = batch[0]  # what most batches are, found without asking further
            return first.size(0) if first.ndim else samples_in(batch)
        return samples_in(batch)
    return sum(samples_in(batch) for _, batch, _ in batches)
