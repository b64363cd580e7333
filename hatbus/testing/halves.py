"""The same data in half batches: what gradient accumulation makes whole again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hatbus.testing.trial import After


def of(data: Any) -> list[Any] | None:
    """Each batch as two halves; None when the data is no list of pairs of tensors."""
    if not isinstance(data, list) or not all(map(_can_be_halved, data)):
        return None
    found: list[Any] = []
    for batch in data:
        found += zip(*(part.chunk(2) for part in batch), strict=True)
    return found


def unequal(one: Sequence[After], other: Sequence[After], *, rtol: float, atol: float) -> str:
    """Where two runs differ by more than rounding; empty if nowhere."""
    if len(one) != len(other):
        return f"the run has {len(other)} steps in place of {len(one)}"
    for a, b in zip(one, other, strict=True):
        for name, weight in a.weights.items():
            if name not in b.weights or not torch.allclose(
                weight.double(), b.weights[name].double(), rtol=rtol, atol=atol, equal_nan=True
            ):
                return f"weight {name!r} is another after step {a.step} than with whole batches"
        rates = [[group.get("lr") for group in run.groups] for run in (a, b)]
        if rates[0] != rates[1]:
            return f"the learning rate after step {a.step} is {rates[1]}, else {rates[0]}"
    return ""


def _can_be_halved(batch: Any) -> bool:
    return isinstance(batch, (tuple, list)) and all(
        isinstance(part, torch.Tensor) and part.ndim > 0 and len(part) % 2 == 0 for part in batch
    )
