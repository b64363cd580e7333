"""Mixed precision as hook wrappers: autocast around forward and loss, and a gradient scaler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.errors import JobError, did_you_mean
from hatbus.events.declare import hookimpl

if TYPE_CHECKING:
    from collections.abc import Generator

    from hatbus.loop.context import Context

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(name: Any) -> str:
    """The name, if there is such a precision.

    Raises:
        JobError: there is not.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise JobError(f"unknown precision {name!r}{did_you_mean(str(name), DTYPES)}")
    return str(name)


class Autocast:
    """Runs forward and loss in lower precision (``torch.autocast``); parameters keep theirs."""

    def __init__(self, precision: str) -> None:
        self._dtype = DTYPES[precision]

    @hookimpl(wrapper=True, tryfirst=True)
    def forward(self, ctx: Context) -> Generator[None, Any, Any]:
        """Autocast around the forward pass."""
        with torch.autocast(ctx.device.type, self._dtype):
            return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def compute_loss(self, ctx: Context) -> Generator[None, Any, Any]:
        """Autocast around the loss."""
        with torch.autocast(ctx.device.type, self._dtype):
            return (yield)


class LossScaling:
    """fp16's gradient scaler: scales the loss, unscales before clipping, skips on overflow."""

    def __init__(self) -> None:
        self._scaled = self._unscaled = self._has_none = False

    @hookimpl(wrapper=True, tryfirst=True)
    def backward(self, ctx: Context) -> Generator[None, Any, Any]:
        """Differentiates the scaled loss."""
        scaler: Any = ctx.scaler
        ctx.loss = scaler.scale(ctx.loss)
        self._scaled = True
        return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def clip_gradients(self, ctx: Context) -> Generator[None, Any, Any]:
        """Unscales the gradients before anything looks at them."""
        if self._scaled and ctx.batches:
            self._has_none = not has_gradients(ctx.optimizer)
            if not self._has_none:
                ctx.scaler.unscale_(ctx.optimizer)  # type: ignore[union-attr, arg-type]
            self._scaled, self._unscaled = False, not self._has_none
        return (yield)

    @hookimpl
    def optimizer_step(self, ctx: Context) -> bool:
        """Updates unless a gradient overflowed; returns whether it did."""
        if self._has_none:  # torch's scaler refuses that; the update is that of full precision
            self._has_none = False
            ctx.optimizer.step()  # type: ignore[union-attr]
            return True
        if not self._unscaled:  # nothing was differentiated
            return False
        committed = scaled_step(ctx.scaler, ctx.optimizer)
        self._unscaled = False  # not after an error: on_step_end closes the scaler's step then
        return committed

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Closes the scaler's step when the update was skipped by a plugin."""
        self._scaled = self._has_none = False
        if self._unscaled:
            ctx.scaler.update()  # type: ignore[union-attr]
            self._unscaled = False


def has_gradients(optimizer: Any) -> bool:
    """Whether any parameter of an optimizer has a gradient; asks no device."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def scaled_step(scaler: Any, optimizer: Any) -> bool:
    """The optimizer's step, if no gradient overflowed; whether there was one.

    The scaler itself waits for the device once, to know. A fused optimizer knows on the device
    only, so there the scale is read before and after.
    """
    is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    if is_fused or not hasattr(optimizer, "_optimizer_step_post_hooks"):  # a wrapper of another one
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        return bool(scaler.get_scale() >= before)
    ran: list[bool] = []
    hook = optimizer.register_step_post_hook(lambda *_: ran.append(True))
    try:
        scaler.step(optimizer)
    finally:
        hook.remove()
    scaler.update()
    return bool(ran)
