"""``torch.inference_mode`` for a validation, and that the training meets none of its tensors.

Inside, torch keeps no counts of views and changes, a little faster than without gradients alone.
What is made there can never be part of a training's graph, so what a module keeps of it (a cache
of positions, made by the first longer sequence) is replaced by a plain copy afterwards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.loop import parts_of
from hatbus.parallel import refuse_sharded

if TYPE_CHECKING:
    from torch import nn

    from hatbus import Context

_NEVER: Final = frozenset({bool, int, float, str, type(None), OrderedDict, set})
"""Types of what is, and holds, no tensor that a forward pass has made."""


def check_inference(ctx: Context) -> None:
    """Refuses a model whose parameters are sharded: FSDP2 gathers them as they are to stay.

    Raises:
        JobError: it is one.
    """
    refuse_sharded(ctx.model, "validation with inference_mode", "leave it out")


@contextmanager
def inference(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inference mode inside; afterwards the modules hold no tensor that was made in it.

    Args:
        modules: those that run inside, with all their parts.
    """
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in modules:
            for part in parts_of(module):
                _make_plain(vars(part))


def plain_tensors(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with a plain copy in the place of every tensor that inference mode made."""
    return {name: _plain(value) for name, value in values.items()}


def _make_plain(held: dict[Any, Any], depth: int = 2) -> None:
    """Replaces tensors in a dict, and in the dicts and lists in it, in place."""
    for name, value in list(held.items()):
        if type(value) in _NEVER:  # most of what a module holds
            continue
        if isinstance(value, torch.Tensor):
            if value.is_inference():
                held[name] = value.clone()
        elif depth and type(value) is dict:
            _make_plain(value, depth - 1)
        elif type(value) in (list, tuple) and any(map(_is_made_inside, value)):
            held[name] = type(value)(map(_plain, value))


def _plain(value: Any) -> Any:
    return value.clone() if _is_made_inside(value) else value


def _is_made_inside(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_inference()
