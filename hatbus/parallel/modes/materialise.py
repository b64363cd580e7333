"""Models that were built on the meta device: parts get memory and first values one by one.

The whole model is never in one place. A part's values are drawn whole on every process, from the
same random numbers, so that they do not depend on how many processes there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from hatbus.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

_WAYS: Final = ("reset_parameters", "_reset_parameters", "init_weights")
"""Methods that give a module's own parameters and buffers their first values; torch's layers have
the first, some of them the second."""
_SHOWN: Final = 3


def is_on_meta(model: nn.Module) -> bool:
    """Whether a part of a model has no memory yet."""
    return any(one.is_meta for one in (*model.parameters(), *model.buffers()))


def check_can_start(model: nn.Module) -> None:
    """Refuses a model on the meta device of which a part cannot be given its first values.

    Raises:
        JobError: which module, and what it needs.
    """
    without = [
        f"{name!r} ({type(module).__name__})"
        for name, module in model.named_modules()
        if _has_on_meta(module) and _way_of(module) is None
    ]
    if without:
        more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
        raise JobError(
            f"the model is on the meta device, and {', '.join(without[:_SHOWN])}{more} has "
            "parameters or buffers of its own and no reset_parameters(), which would give them "
            "their first values; write it, or build the model on the CPU"
        )


def materialise(part: nn.Module, device: torch.device) -> None:
    """Gives what is on the meta device in a part of a model memory and its first values.

    Args:
        part: with all below it.
        device: where to.
    """
    made: dict[int, tuple[Any, nn.Parameter]] = {}  # one that two modules share stays shared
    new = [module for module in part.modules() if _has_on_meta(module)]
    for module in new:
        for name, one in _own_on_meta(module._parameters):  # noqa: SLF001 - their places
            if id(one) not in made:
                empty = torch.empty_like(one, device=device)
                made[id(one)] = one, nn.Parameter(empty, requires_grad=one.requires_grad)
            module._parameters[name] = made[id(one)][1]  # noqa: SLF001
        for name, one in _own_on_meta(module._buffers):  # noqa: SLF001
            module._buffers[name] = torch.empty_like(one, device=device)  # noqa: SLF001
    for module in new:
        start = _way_of(module)
        if start is not None:
            start()


def _way_of(module: nn.Module) -> Callable[[], Any] | None:
    found = (getattr(module, name, None) for name in _WAYS)
    return next((one for one in found if callable(one)), None)


def _has_on_meta(module: nn.Module) -> bool:
    held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(one.is_meta for one in held)


def _own_on_meta(held: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from [(name, one) for name, one in held.items() if one is not None and one.is_meta]
