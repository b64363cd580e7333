"""The single numbers among what was published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus.loop.context import Context


def scalars_of(ctx: Context) -> Iterator[tuple[str, float]]:
    """The published values of a run that are single numbers, by name; waits for the device."""
    for name, value in ctx.latest.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            yield name, float(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value
