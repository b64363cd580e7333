"""What happens when a loss is NaN or infinite: raise, skip the update, or ignore it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.declare import hookimpl
from hatbus.errors import JobError, NonFiniteError, did_you_mean

if TYPE_CHECKING:
    from hatbus.context import Context

POLICIES: Final = ("raise", "skip_step", "ignore")
CHECK_EVERY: Final = 32
"""Steps between two looks at the losses on an accelerator, where each look waits for it."""
MOST_SKIPPED: Final = 10
"""Steps in a row that ``skip_step`` skips before it gives up."""


class FiniteLoss:
    """Looks at the losses before the update.

    On the CPU every step is checked. On an accelerator ``"raise"`` looks at the last 32 steps
    together, so that no step waits for the device; ``"skip_step"`` has to wait in every step.

    Args:
        policy: ``"raise"`` or ``"skip_step"``.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise JobError(f"unknown nan policy {policy!r}{did_you_mean(policy, POLICIES)}")
        self._skips = policy == "skip_step"
        self._in_a_row = 0
        self._kept: list[tuple[int, str, torch.Tensor]] = []

    @hookimpl
    def skip_update(self, ctx: Context, losses: dict[str, torch.Tensor]) -> str | None:
        """A reason to skip the update under ``skip_step``.

        Raises:
            NonFiniteError: a loss is NaN or infinite, or too many steps in a row were skipped.
        """
        if not self._skips and ctx.device.type != "cpu":
            self._keep(ctx.global_step_id, losses)
            return None
        for name, value in losses.items():
            number = value.item()
            if not math.isfinite(number):
                return self._found(ctx.global_step_id, name, number)
        if losses:
            self._in_a_row = 0
        return None

    @hookimpl
    def veto_checkpoint(self) -> None:
        """Looks at what was kept, so that no checkpoint holds what a bad loss made of the weights.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        self._look()

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Looks at what was kept; if the run ends with an error anyway, the next begins anew."""
        if ctx.exception is None:
            self._look()
        else:
            self._in_a_row = 0
            self._kept.clear()

    def state_dict(self) -> dict[str, Any]:
        """How many steps in a row were skipped."""
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting."""
        self._in_a_row = state["in_a_row"]

    def _found(self, step: int, name: str, number: float) -> str:
        self._in_a_row += 1
        what = f"loss {name!r} is {number} in step {step}"
        if not self._skips:
            raise NonFiniteError(
                f"{what}; lower the learning rate or clip gradients, or choose another policy: "
                "nan = 'skip_step' or 'ignore'"
            )
        if self._in_a_row > MOST_SKIPPED:
            raise NonFiniteError(f"{what}, after {MOST_SKIPPED} skipped steps in a row")
        return what

    def _keep(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        self._kept.extend((step, name, value.detach()) for name, value in losses.items())
        if (step + 1) % CHECK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        kept, self._kept = self._kept, []
        if not kept:
            return
        numbers: list[Any] = torch.stack([v.float() for _, _, v in kept]).tolist()
        for (step, name, _), number in zip(kept, numbers, strict=True):
            if not math.isfinite(number):
                self._found(step, name, number)
