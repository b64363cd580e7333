"""Showing other weights in a model's place for a while, without copying the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus_model.moving_average import Place


@contextmanager
def shown(values: Mapping[str, Tensor], followed: Mapping[str, Place]) -> Iterator[None]:
    """The model holds ``values`` inside this context, and exactly what it held before after it.

    Parameters point to the values themselves for that time: do not write to them. Buffers point
    to copies, since a forward pass may well write to those.

    Args:
        values: tensors by name; one of another dtype or device is converted.
        followed: where the model keeps its own, under the same names.
    """
    kept: list[tuple[Place, Tensor, Tensor]] = []
    try:
        for name, value in values.items():
            held, key = followed[name]
            kept.append((followed[name], held[key], held[key].data))
            held[key].data = _to_show(value, held[key])
        yield
    finally:
        for (held, key), live, data in kept:
            live.data = data
            held[key] = live


def _to_show(value: Tensor, live: Tensor) -> Tensor:
    converted = value.detach().to(live)
    is_buffer = not isinstance(live, nn.Parameter)
    return (
        value.detach().clone()
        if is_buffer and converted.data_ptr() == value.data_ptr()
        else converted
    )
