"""The schedule of the Transformer paper."""

from __future__ import annotations

from typing import Literal

from hatbus.option_values import number
from hatbus_lr.updater import Line, Updater


def noam(d_model: float, warmup: float, s: int) -> float:
    """``d_model^-0.5 * min(s^-0.5, s * warmup^-1.5)``, s from 1."""
    width: float = d_model**-0.5
    share: float = s**-0.5 if s >= warmup else s * warmup**-1.5  # the smaller of the two
    return width * share


class NoamLrUpdater(Updater):
    """Linear warmup, then decay with the inverse square root of the step.

    With s = ``num_update + 1``::

        lr = initial * d_model ** -0.5 * min(s ** -0.5, s * warmup_step ** -1.5)

    Source: Vaswani et al., Attention Is All You Need, equation 3; ``hat.callbacks.NoamLrUpdater``.
    HAT's page and the paper have ``d_model ** -0.5``; HAT's code has ``d_model ** 0.5``, which is
    d_model times as much. This is the page's: coming from HAT's code, multiply the lr by d_model.

    Args:
        d_model: width of the model, above 0.
        warmup_step: where the peak lies, above 0.
        update_by: count ``"step"`` or ``"epoch"``.
        step_log_interval: log every so many updates (steps, or epochs with
            ``update_by="epoch"``); None for never.
        field: the number of the param groups that is set: ``"lr"``, ``"weight_decay"``,
            ``"momentum"``, ``"beta1"``, ...

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(
        self,
        d_model: int | float = 256,
        warmup_step: int | float = 4000,
        update_by: Literal["step", "epoch"] | None = "step",
        step_log_interval: int | None = 1,
        *,
        field: str = "lr",
    ) -> None:
        number("d_model", d_model, above=True)
        number("warmup_step", warmup_step, above=True)
        super().__init__(
            update_by=update_by or "step",
            step_log_interval=step_log_interval,
            log_by=update_by or "step",
            field=field,
        )
        self.d_model, self.warmup_step = d_model, warmup_step

    def line(self, num_update: int) -> Line:
        """The whole curve, warmup included, at a step or epoch."""
        return noam(self.d_model, self.warmup_step, num_update + 1), 0.0

    def warmup_line(self, num_update: int) -> Line:
        """As ``line``: the warmup is part of the curve."""
        return self.line(num_update)
