"""``FreezeObservers``: a QAT model's ranges stay, from a step or epoch on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hatbus import hookimpl, plugin
from hatbus.errors import JobError
from hatbus.log import log
from hatbus.option_values import UNITS, one_of, whole
from hatbus_quantization.eager import fake_quants

if TYPE_CHECKING:
    from hatbus.loop import Context


@plugin(stage="train")
class FreezeObservers:
    """Stops the observers of a QAT model, so that it trains on with the ranges that it has.

    The last epochs are then trained on the very numbers that the quantised model has. Whether they
    are stopped is part of the model's weights, so a resumed run goes on alike. Source:
    Krishnamoorthi, Quantizing deep convolutional networks, 2018, section 3.2.3.

    Args:
        step_or_epoch: when, from 0; reached at the first index not less.
        update_by: ``"epoch"`` or ``"step"``: the unit of the number.

    Raises:
        JobError: a value that is not accepted; at loop begin, a model without observers.
    """

    def __init__(self, step_or_epoch: int, update_by: Literal["epoch", "step"] = "epoch") -> None:
        whole("freeze_observers: step_or_epoch", step_or_epoch, 0)
        one_of("freeze_observers: update_by", update_by, UNITS)
        self.step_or_epoch, self.update_by = step_or_epoch, update_by
        self._is_done = False

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Looks whether there is something to stop."""
        self._is_done = False
        if not fake_quants(ctx.model):
            raise JobError(
                "freeze_observers: the model has no observers; convert it first (Float2QAT)"
            )

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Stops them when that is due."""
        if self.update_by == "epoch":
            self._stop(ctx, ctx.epoch_id)

    @hookimpl
    def on_step_begin(self, ctx: Context) -> None:
        """Stops them when that is due."""
        if self.update_by == "step" and not self._is_done:
            self._stop(ctx, ctx.global_step_id)

    def _stop(self, ctx: Context, index: int) -> None:
        if self._is_done or index < self.step_or_epoch:
            return
        self._is_done = True
        found: list[Any] = fake_quants(ctx.model)
        for one in found:
            one.disable_observer()
        log.info("freeze_observers: %d observers stopped", len(found))
