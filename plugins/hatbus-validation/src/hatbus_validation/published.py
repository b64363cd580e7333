"""Names and text of what a validation publishes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch


@lru_cache(maxsize=4096)
def outer_name(first: str, loader: str, name: str) -> str:
    """The name on the training's bus.

    >>> outer_name("val", "", "accuracy"), outer_name("val", "noisy", "train/det/loss")
    ('val/accuracy', 'val/noisy/det/loss')
    """
    for own in ("train/", f"{first}/"):
        name = name.removeprefix(own)
    return "/".join(part for part in (first, loader, name) if part)


class Said:
    """Values as text; the device is waited for only when somebody reads it."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __str__(self) -> str:
        """``val/accuracy 0.9712, val/loss 0.1034``."""
        shown = (f"{name} {_number(value)}" for name, value in self._values.items())
        return ", ".join(shown) or "nothing was published"


def _number(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
