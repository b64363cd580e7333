"""Showing other weights in a model's place for a while, without copying the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hatbus.parallel import is_shard, reshard

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus_model.moving_average import Place


@contextmanager
def shown(
    model: nn.Module, values: Mapping[str, Tensor], followed: Mapping[str, Place]
) -> Iterator[None]:
    """The model holds ``values`` inside this context, and exactly what it held before after it.

    Parameters point to the values themselves for that time: do not write to them. Buffers point
    to copies, since a forward pass may well write to those. Shards (FSDP2) are overwritten, and
    written back from a copy: FSDP goes by their memory.

    Args:
        model: what holds them.
        values: tensors by name; one of another dtype or device is converted.
        followed: where the model keeps its own, under the same names.
    """
    reshard(model)
    undo: list[Callable[[], object]] = []
    try:
        for name, value in values.items():
            put = _overwrite if is_shard(value) else _point
            undo.append(put(followed[name], value))
        yield
    finally:
        reshard(model)
        for back in undo:
            back()


def _point(place: Place, value: Tensor) -> Callable[[], object]:
    held, key = place
    live, data = held[key], held[key].data
    live.data = _to_show(value, live)
    return partial(_point_back, place, live, data)


def _point_back(place: Place, live: Tensor, data: Tensor) -> None:
    held, key = place
    live.data = data
    held[key] = live


@torch.no_grad()
def _overwrite(place: Place, value: Tensor) -> Callable[[], object]:
    held, key = place
    shards: list[Any] = [held[key].detach(), value.detach()]
    mine, other = (shard.to_local() for shard in shards)
    kept = mine.clone()
    mine.copy_(other)
    return partial(mine.copy_, kept)


def _to_show(value: Tensor, live: Tensor) -> Tensor:
    converted = value.detach().to(live)
    is_buffer = not isinstance(live, nn.Parameter)
    return (
        value.detach().clone()
        if is_buffer and converted.data_ptr() == value.data_ptr()
        else converted
    )
