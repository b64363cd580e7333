"""Polynomial decay with warmup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hatbus.option_values import number, whole
from hatbus_lr.updater import Line, Updater
from hatbus_lr.warmup import Warmup

if TYPE_CHECKING:
    from hatbus_lr.plan import Plan


def polynomial(index: float, length: int, power: float) -> float:
    """``(1 - index / length) ** power``, from 1 at index 0 to 0 from ``length`` on."""
    if index >= length:
        return 0.0
    left: float = (1.0 - index / length) ** power if index > 0 else 1.0
    return left


class PolyLrUpdater(Updater):
    """Polynomial decay of the lr of every param group, after an optional warmup.

    With u the updates since warmup ended (steps, or epochs with ``update_by="epoch"``)::

        lr = final_lr + (initial - final_lr) * (1 - u / max_update) ** power
        lr = final_lr from u = max_update on

    Source: Liu et al., ParseNet, section 3.1 (the "poly" policy); ``hat.callbacks.PolyLrUpdater``.

    Args:
        max_update: length of the decay in steps or epochs, warmup not included.
        update_by: ``"step"`` or ``"epoch"``: the unit of ``max_update`` and of the changes.
        power: exponent.
        final_lr: lr at the end and after it.
        warmup_by: unit of ``warmup_len``: ``"step"`` or ``"epoch"``; warmup moves every step.
        warmup_mode: ``"linear"`` or ``"constant"``.
        warmup_len: length of the warmup; 0 for none.
        warmup_begin_lr: lr of step 0, linear only.
        warmup_lr_ratio: what warmup aims at, as a share of the initial lr, 0 to 1.
        step_log_interval: log every so many steps (with ``warmup_by="epoch"`` at each epoch's
            begin); None for never.
        field: the number of the param groups that is set: ``"lr"``, ``"weight_decay"``,
            ``"momentum"``, ``"beta1"``, ...

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(
        self,
        max_update: int,
        update_by: Literal["step", "epoch"] | None = "step",
        power: float | None = 1.0,
        final_lr: float | None = 0.0,
        warmup_by: Literal["step", "epoch"] | None = "step",
        warmup_mode: Literal["linear", "constant"] | None = "linear",
        warmup_len: int | None = 0,
        warmup_begin_lr: float | None = 0.0,
        warmup_lr_ratio: float | None = 1.0,
        step_log_interval: int | None = 1,
        *,
        field: str = "lr",
    ) -> None:
        whole("max_update", max_update, 1)
        power, final_lr = 1.0 if power is None else power, 0.0 if final_lr is None else final_lr
        number("power", power, above=True)
        number("final_lr", final_lr)
        super().__init__(
            update_by=update_by or "step",
            warmup=Warmup.of(warmup_by, warmup_len, warmup_mode, warmup_begin_lr, warmup_lr_ratio),
            step_log_interval=step_log_interval,
            field=field,
        )
        self.max_update, self.power, self.final_lr = max_update, power, float(final_lr)
        self._behind = int(self.warmup_steps)

    def prepare(self, plan: Plan) -> None:
        """How many updates lie behind when the formal part begins."""
        self._behind = steps = int(self.warmup_steps)
        if self.update_by == "epoch" and steps:
            instead = "give update_by='step'"
            length = plan.epoch_length("PolyLrUpdater", "warmup with update_by='epoch'", instead)
            self._behind = -(-steps // length)

    def line(self, num_update: int) -> Line:
        """The polynomial at an absolute step or epoch."""
        share = polynomial(num_update - self._behind, self.max_update, self.power)
        return share, self.final_lr * (1.0 - share)
