"""Which published values are numbers, and reading them with one transfer per device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable


def is_number(value: Any) -> bool:
    """Whether a value is one real number; asks no device."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, (int, float))


def numbers(values: Iterable[Any]) -> list[float]:
    """Numbers and tensors of one element as Python's floats, in the same order."""
    found = list(values)
    waiting: dict[torch.device, list[int]] = {}
    for index, value in enumerate(found):
        if not isinstance(value, Tensor):
            found[index] = float(value)
        elif value.device.type == "cpu":
            found[index] = float(value.item())
        else:
            waiting.setdefault(value.device, []).append(index)
    for device, indices in waiting.items():
        wide = torch.float32 if device.type == "mps" else torch.float64
        row = torch.stack([found[i].reshape(()).to(wide) for i in indices]).tolist()
        for index, number in zip(indices, row, strict=True):
            found[index] = number
    return found
