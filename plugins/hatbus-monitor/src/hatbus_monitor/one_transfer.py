"""Published values as Python numbers, with one transfer per device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def numbers(values: Iterable[Any]) -> list[Any]:
    """The values, 0-d tensors as numbers; waits once per device that holds one.

    Args:
        values: numbers, tensors with one element, or anything else, which stays as it is.

    Returns:
        As many values, in the same order.
    """
    found = list(values)
    waiting: dict[torch.device, list[int]] = defaultdict(list)
    for index, value in enumerate(found):
        if isinstance(value, Tensor) and value.numel() == 1:
            if value.device.type == "cpu":
                found[index] = value.item()
            else:
                waiting[value.device].append(index)
    for device, indices in waiting.items():
        wide = torch.float32 if device.type == "mps" else torch.float64
        row = torch.stack([found[i].detach().reshape(()).to(wide) for i in indices]).tolist()
        for index, number in zip(indices, row, strict=True):
            found[index] = number
    return found
