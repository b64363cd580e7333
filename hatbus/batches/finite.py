"""What happens when a loss or gradient is NaN or infinite: raise, skip the update, or ignore it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.batches.finite_tensors import not_finite
from hatbus.batches.finite_weights import trained
from hatbus.errors import JobError, NonFiniteError, did_you_mean
from hatbus.events.declare import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from hatbus.loop.context import Context

FINITE: Final = "core.finite_loss"
"""The name of the part that looks at the losses."""
POLICIES: Final = ("raise", "skip_step", "ignore")
CHECK_EVERY: Final = 32
"""Steps between two looks at the losses on an accelerator, where each look waits for it."""
MOST_SKIPPED: Final = 10
"""Steps in a row that ``skip_step`` skips before it gives up."""
_NORM: Final = "the gradient norm"


def _seen_before(self: FiniteLoss, update: Callable[[Context], Any]) -> Callable[[Context], Any]:
    """The plain form of ``FiniteLoss.optimizer_step``."""
    see, is_later = self.see, self.is_later

    def optimizer_step(ctx: Context) -> Any:
        for loss in ctx.losses.values():
            if is_later or (number := loss.item()) - number != 0.0:  # NaN or infinite
                see(ctx)
                return update(ctx)
        norm = ctx.grad_norm
        if norm is not None and (is_later or (number := norm.item()) - number != 0.0):
            see(ctx)
        return update(ctx)

    return optimizer_step


class FiniteLoss:
    """Ends the run before a loss that is NaN or infinite reaches the weights.

    On the CPU every step is checked. On an accelerator the last 32 steps are looked at together,
    so that no step waits for the device. So is the gradients' norm, where a plugin has it
    (``ctx.grad_norm``); that of large finite gradients may be infinite, and is no fault.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_later = device.type != "cpu"
        self._kept: list[tuple[int, str, torch.Tensor]] = []

    @hookimpl(wrapper=True, tryfirst=True)
    def optimizer_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Looks at the step's losses, or keeps them for later.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        self.see(ctx)
        return (yield)

    optimizer_step.around = _seen_before  # type: ignore[attr-defined]  # see hatbus.bus.dispatch

    def see(self, ctx: Context) -> None:
        """Looks at the step's losses, or keeps them for later."""
        step, norm = ctx.global_step_id, ctx.grad_norm if ctx.scaler is None else None
        if self.is_later:
            self._keep(step, ctx.losses, norm)
            return
        for name, value in ctx.losses.items():
            number = value.item()
            if not math.isfinite(number):
                self._refuse(step, named(name), number)
        if norm is not None and not math.isfinite(norm.item()) and bad_gradient(ctx):
            self._refuse(step, _NORM, norm.item())

    @hookimpl
    def veto_checkpoint(self) -> None:
        """Looks at what was kept, so that no checkpoint holds what a bad loss made of the weights.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        self._look()

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Looks at what was kept; if the run ends with an error anyway, it is forgotten."""
        if ctx.exception is None:
            self._look()
        else:
            self._kept.clear()

    def _keep(self, step: int, losses: dict[str, torch.Tensor], norm: torch.Tensor | None) -> None:
        self._kept.extend((step, named(name), value.detach()) for name, value in losses.items())
        if norm is not None:
            self._kept.append((step, _NORM, norm))
        if (step + 1) % CHECK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        kept, self._kept = self._kept, []
        if not kept:
            return
        numbers: list[Any] = torch.stack([v.float() for _, _, v in kept]).tolist()
        for (step, what, _), number in zip(kept, numbers, strict=True):
            if math.isnan(number) or (what != _NORM and math.isinf(number)):
                self._refuse(step, what, number)

    def _refuse(self, step: int, what: str, number: float) -> None:
        raise NonFiniteError(
            f"{said(step, what, number)}; lower the learning rate or clip gradients, or choose "
            "another policy: nan = 'skip_step' or 'ignore'"
        )


class SkipBadLoss:
    """Skips the update of a step whose loss or gradient is NaN or infinite, on any rank.

    Buffers, such as running statistics, are put back to what they were before the step. Every step
    waits for the device. After 10 skipped steps in a row the run ends. Infinite gradients of fp16
    are its loss scaler's affair.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._buffers: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = []

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Keeps the buffers as they are."""
        held = (m._buffers for m in ctx.all_modules.modules())  # noqa: SLF001 - the dicts themselves
        found = ((own, key, one) for own in held for key, one in own.items() if one is not None)
        self._buffers = [(own, key, one, one.clone()) for own, key, one in found]
        return (yield)

    @hookimpl
    def skip_update(self, ctx: Context, losses: dict[str, torch.Tensor]) -> str | None:
        """A reason to skip the update."""
        for name, value in losses.items():
            number = value.item()
            if not math.isfinite(number):
                return said(ctx.global_step_id, named(name), number)
        is_scaled, norm = ctx.scaler is not None, ctx.grad_norm
        if is_scaled or (norm is not None and math.isfinite(norm.item())):
            return None
        bad = bad_gradient(ctx)
        return f"the gradient of {bad} in step {ctx.global_step_id}" if bad else None

    @hookimpl(wrapper=True, tryfirst=True, specname="skip_update")
    def count(self, ctx: Context) -> Generator[None, Any, Any]:
        """Counts what all ranks agreed to skip for a loss, so that all of them give up together.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
        """
        found = yield
        mine = [reason for name, reason in found if name == FINITE]
        if mine:
            self._in_a_row += 1
            self._put_back()
        elif ctx.losses:
            self._in_a_row = 0
        if self._in_a_row > MOST_SKIPPED:
            raise NonFiniteError(f"{mine[0]}, after {MOST_SKIPPED} skipped steps in a row")
        return found

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """If the run ends with an error, the next begins anew."""
        if ctx.exception is not None:
            self._in_a_row = 0

    @torch.no_grad()
    def _put_back(self) -> None:
        for held, key, live, kept in self._buffers:
            is_same = (live == kept) | ((live != live) & (kept != kept))  # noqa: PLR0124 - NaN
            if not is_same.all():  # one that cannot be written to has not changed
                live.copy_(kept)
            held[key] = live

    def state_dict(self) -> dict[str, Any]:
        """How many steps in a row were skipped."""
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting."""
        self._in_a_row = state["in_a_row"]


def finite_loss(policy: str, device: torch.device) -> object | None:
    """The part of hatbus that follows a policy; None when it has nothing to do.

    Raises:
        JobError: an unknown policy.
    """
    if policy not in POLICIES:
        raise JobError(f"unknown nan policy {policy!r}{did_you_mean(policy, POLICIES)}")
    if policy == "raise":
        return FiniteLoss(device)
    return SkipBadLoss() if policy == "skip_step" else None


def bad_gradient(ctx: Context) -> str:
    """The first gradient that is not finite, in words; empty if all are."""
    gradients = ((name, p.grad) for name, p in trained(ctx) if p.grad is not None)
    return next(not_finite(gradients), "")


def named(loss: str) -> str:
    """A loss in a message."""
    return f"loss {loss!r}"


def said(step: int, what: str, number: float) -> str:
    """What is bad, in words."""
    return f"{what} is {number} in step {step}"
