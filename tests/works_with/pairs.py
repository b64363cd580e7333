"""All pairs, in the order of the page."""

from __future__ import annotations

from works_with import (
    of_batches,
    of_formats,
    of_loaders,
    of_metrics,
    of_models,
    of_optimizers,
    of_schedules,
)
from works_with.pair import KINDS, Pair

MODULES = (
    of_optimizers,
    of_schedules,
    of_loaders,
    of_batches,
    of_metrics,
    of_models,
    of_formats,
)
OF_CI = {"torch", "torchmetrics", "tensorboard", "safetensors"}
"""What hatbus itself and its tests need anyhow."""


def every(*, sample: bool = False) -> list[Pair]:
    """Every pair; or, as a sample, one of each kind and verdict that needs no further package."""
    found = [pair for module in MODULES for pair in module.PAIRS]
    found.sort(key=lambda pair: KINDS.index(pair.kind))
    if not sample:
        return found
    first: dict[tuple[str, str], Pair] = {}
    for pair in found:
        if pair.library in OF_CI:
            first.setdefault((pair.kind, pair.verdict), pair)
    return list(first.values())
