"""How many samples a step holds."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hatbus.data import samples_in


def samples_of_step(batches: list[tuple[str | None, Any, float]]) -> int:
    """Samples in all batches of a step; 0 for batches without any tensor that has a length."""
    if len(batches) == 1:
        batch = batches[0][1]
        if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
            first = batch[0]  # what most batches are, found without asking further
            size = first.size(0) if first.ndim else 0
            if size:
                return size
    return sum(samples_in(batch) or 0 for _, batch, _ in batches)
