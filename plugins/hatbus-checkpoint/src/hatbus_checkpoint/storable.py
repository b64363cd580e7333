"""What a checkpoint could not hold, or never give back: known before the first step is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn.parameter import is_lazy

from hatbus.errors import SaveError
from hatbus_checkpoint import optimizer_state
from hatbus_checkpoint.shapes import buffers_as_built
from hatbus_checkpoint.tensor_file import check_storable
from hatbus_checkpoint.tree import encode

if TYPE_CHECKING:
    from hatbus.loop import Context

_WAYS: Final = (
    "keep it out of the state (register_buffer(..., persistent=False)) and make it anew, or "
    "register what it is made of"
)


def check_state(ctx: Context) -> None:
    """Refuses a model or an optimizer that cannot be saved.

    Raises:
        SaveError: naming the tensor, or the optimizer.
    """
    check_model(ctx.model)
    buffers_as_built(ctx)
    if ctx.optimizer is not None:
        check_optimizer(ctx.model, ctx.optimizer)


def check_model(model: torch.nn.Module) -> None:
    """Looks at every tensor of a model's state; those of lazy modules come with the first batch.

    Raises:
        SaveError: naming the tensor.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or is_lazy(value):
            continue
        try:
            check_storable(value, name)
        except SaveError as error:
            raise SaveError(f"the model cannot be saved: {error}; {_WAYS}") from error
        if any(n > 1 and s == 0 for n, s in zip(value.shape, value.stride(), strict=True)):
            raise SaveError(
                f"the model cannot be resumed: several elements of tensor {name!r} are one (it was "
                f"expanded to {tuple(value.shape)}), which torch does not load; register "
                f"{name.rpartition('.')[2]}.contiguous()"
            )


def check_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Tries to take an optimizer's state apart.

    Raises:
        SaveError: naming the optimizer and what of its state cannot be stored.
    """
    kind = type(optimizer).__name__
    lacks = [n for n in ("state_dict", "load_state_dict") if not hasattr(optimizer, n)]
    if lacks:
        raise SaveError(
            f"optimizer {kind} cannot be saved: it has no {' and no '.join(lacks)}; give it both, "
            "or leave checkpoint out"
        )
    try:
        encode(optimizer_state.take(model, optimizer), inline=0)
    except SaveError as error:
        raise SaveError(f"optimizer {kind} cannot be saved: {error}") from error
