"""How many samples a step holds."""

from __future__ import annotations

from typing import Any

from hatbus.data import samples_in


def samples_of_step(batches: list[tuple[str | None, Any, float]]) -> int:
    """Samples in all batches of a step; 0 for batches without any tensor that has a length."""
    return sum(samples_in(batch) or 0 for _, batch, _ in batches)
