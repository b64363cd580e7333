"""``SpikeWatch``: ends a run whose loss leaps."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from hatbus import hookimpl, plugin

if TYPE_CHECKING:
    import torch

    from hatbus import Context


def moved_average(average: float | None, value: float, decay: float) -> float:
    """The running average after one more value; the first value starts it."""
    return value if average is None else decay * average + (1 - decay) * value


@plugin(stage="monitor", after="grad_monitor")
class SpikeWatch:
    """Ends a run whose loss leaps to many times its running average.

    Args:
        decay: of the running average, in 0..1.
        factor: times the average at which the run ends.
        log_freq: steps between two published averages.

    Raises:
        ValueError: an option is outside its range.
    """

    def __init__(self, decay: float = 0.9, factor: float = 5.0, log_freq: int = 1) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay!r}; accepted: 0 or more, less than 1")
        if factor <= 1 or log_freq < 1:
            raise ValueError(f"factor={factor!r}, log_freq={log_freq!r}; accepted: > 1, and >= 1")
        self.decay, self.factor, self.log_freq = decay, factor, log_freq
        self.average: float | None = None
        self.update_seconds = 0.0

    @hookimpl(wrapper=True)
    def optimizer_step(self) -> Generator[None, Any, Any]:
        """Takes the time of every update."""
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            self.update_seconds += time.perf_counter() - began

    @hookimpl
    def on_step_end(
        self, ctx: Context, losses: dict[str, torch.Tensor], global_step_id: int
    ) -> None:
        """Compares the step's loss with the average, then moves the average."""
        if ctx.exception is not None or global_step_id % self.log_freq:
            return
        loss = sum(value.item() for value in losses.values())
        if self.average is not None and loss > self.factor * self.average:
            ctx.control.stop("run", f"the loss leapt from {self.average:.3g} to {loss:.3g}")
        self.average = moved_average(self.average, loss, self.decay)
        ctx.log({"watch/loss": self.average})

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Publishes what the updates took."""
        if ctx.exception is None:
            ctx.log({"watch/update_seconds": self.update_seconds})

    def state_dict(self) -> dict[str, Any]:
        """The average goes on where it was."""
        return {"average": self.average, "update_seconds": self.update_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        self.average, self.update_seconds = state["average"], state["update_seconds"]
