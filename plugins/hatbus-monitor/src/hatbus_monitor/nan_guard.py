"""``NanGuard``: stops at the first NaN or infinity and names the tensor it came from."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hatbus import hookimpl, plugin
from hatbus.errors import NonFiniteError
from hatbus.log import log
from hatbus.option_values import one_of, whole
from hatbus.parallel import is_sharded, local_tensor
from hatbus_monitor.first_bad import first_bad_tensor, first_bad_value, on_any_process
from hatbus_monitor.grad_monitor import each_norm

if TYPE_CHECKING:
    from hatbus import Context

ACTIONS = ("raise", "log")


@plugin(stage="train")
class NanGuard:
    """Looks at losses and gradients before the update; the first bad tensor is searched and named.

    The check is one number for all gradients and losses. It is read in every step on the CPU, where
    that waits for nothing; on an accelerator every ``check_every`` steps, because reading waits for
    the device. When it is bad, the batch, the weights and the outputs of every module (by running
    the step's batches forward once more) are searched, in this order, then losses and gradients.
    Weights are as they were before the step, unless the fault is older than the last check.

    With fp16 and a loss scaler only losses are looked at: infinite gradients are the
    scaler's affair.

    Args:
        check_every: steps between two checks; by default every step on the CPU, and every 32 on an
            accelerator, where a check waits for the device. 1 finds the very step.
        action: ``"raise"`` ends the run; ``"log"`` only says what it found, for a run whose own
            policy is to skip the step.

    Raises:
        JobError: a value that cannot be used.
    """

    def __init__(self, check_every: int | None = None, action: str = "raise") -> None:
        if check_every is not None:
            whole("nan_guard: check_every", check_every, 1)
        one_of("nan_guard: action", action, ACTIONS)
        self.check_every, self.action = check_every, action
        self._every, self._sharded = 1, False

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Settles how often it looks, and whether gradients are in parts."""
        self._sharded = is_sharded(ctx.model)
        self._every = self.check_every or (1 if ctx.device.type == "cpu" else 32)

    @hookimpl(wrapper=True)
    def clip_gradients(self, ctx: Context) -> Generator[None, Any, Any]:
        """Checks after the last backward of the step, before anybody clips.

        Raises:
            NonFiniteError: there is a NaN or an infinity.
        """
        if (ctx.global_step_id + 1) % self._every == 0:
            gradients = gradients_of(ctx)
            looked_at = [*ctx.losses.values(), *gradients.values()]
            if not is_finite(looked_at, sharded=self._sharded):
                self._found(ctx, gradients)
        return (yield)

    def _found(self, ctx: Context, gradients: dict[str, Tensor]) -> None:
        where = first_bad_tensor(ctx) or on_any_process(
            ctx,
            first_bad_value("loss", ctx.losses.items())
            or first_bad_value("the gradient of", reversed(gradients.items())),
        )
        if where is None:  # the norm of large finite gradients overflowed
            return
        message = f"step {ctx.global_step_id}: the first tensor that is not finite is {where}"
        if self.action == "log":
            log.warning("%s", message)
            return
        late = f"; checked every {self._every} steps, so it may be older" if self._every > 1 else ""
        raise NonFiniteError(
            f"{message}{late}; lower the learning rate, clip gradients, or look at that module"
        )


def gradients_of(ctx: Context) -> dict[str, Tensor]:
    """Gradients by parameter name; none where a loss scaler looks after them."""
    if ctx.scaler is not None and ctx.scaler.is_enabled():
        return {}
    return {n: p.grad for n, p in ctx.all_modules.named_parameters() if p.grad is not None}


def is_finite(tensors: list[Tensor], *, sharded: bool = False) -> bool:
    """Whether everything in the tensors is finite; waits for the device once.

    Args:
        tensors: losses and gradients.
        sharded: gradients are shards (FSDP2): whether their parts and the losses are finite on all
            processes, and every one has to ask.
    """
    parts = list(map(local_tensor, tensors)) if sharded else tensors
    floats = [t for t in parts if t.is_floating_point() and t.numel()]
    if not floats:
        return True
    norms = each_norm(floats, float("inf"))
    device = norms[0].device
    total = torch.stack([norm.to(device, torch.float32) for norm in norms]).sum()
    if sharded:
        torch.distributed.all_reduce(total)
    return bool(torch.isfinite(total))
