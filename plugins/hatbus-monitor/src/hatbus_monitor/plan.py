"""How many steps a run will have, as far as anybody can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hatbus import Context


class Plan:
    """The lengths of epoch and run; a loader without length is measured by its first epoch.

    Attributes:
        measured: steps of the last whole epoch; None before its end.
    """

    __slots__ = ("measured",)

    def __init__(self) -> None:
        self.measured: int | None = None

    def epoch_ended(self, ctx: Context) -> None:
        """Remembers how long the epoch was, if it ran to its end."""
        if ctx.exception is None and ctx.position.step == 0 and ctx.control.stopped is None:
            self.measured = ctx.step_id + 1

    def steps_per_epoch(self, ctx: Context) -> int | None:
        """Steps of an epoch; None when nobody knows."""
        return ctx.steps_per_epoch if ctx.steps_per_epoch is not None else self.measured

    def total_steps(self, ctx: Context) -> int | None:
        """Steps of the whole run; None when nobody knows."""
        if ctx.total_steps is not None:
            return ctx.total_steps
        if ctx.num_epochs is None or self.measured is None:
            return None
        done_epochs, position = ctx.position.epoch, ctx.position
        behind = position.global_step - position.step
        return behind + max(ctx.num_epochs - done_epochs, 0) * self.measured

    def num_epochs(self, ctx: Context) -> int | None:
        """Epochs of the run, also when it is planned in steps; None when nobody knows."""
        length = self.steps_per_epoch(ctx)
        if ctx.num_epochs is not None or ctx.num_steps is None or length is None:
            return ctx.num_epochs
        return -(-ctx.num_steps // length)
