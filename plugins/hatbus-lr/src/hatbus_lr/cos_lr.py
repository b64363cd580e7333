"""Cosine decay by step, with warmup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hatbus.errors import JobError
from hatbus.option_values import number, whole
from hatbus_lr.annealing import falling
from hatbus_lr.updater import Line, Updater, warn_of_long_warmup
from hatbus_lr.warmup import Warmup

if TYPE_CHECKING:
    from hatbus_lr.plan import Plan


class CosLrUpdater(Updater):
    """Cosine decay of the lr of every param group, step by step, after an optional warmup.

    With g = ``global_step_id``, W the steps of the warmup and M = ``max_steps``::

        lr = stop_lr + (initial - stop_lr) * (1 + cos(pi * (g - W) / M)) / 2
        lr = stop_lr from g = W + M on

    Source: Loshchilov and Hutter, SGDR, equation 5, without restarts;
    ``hat.callbacks.CosLrUpdater`` (whose cosine rises again after the end; this one does not).

    Args:
        max_steps: M, warmup not included; below 0 or None: what the run has after its warmup.
        stop_lr: lr at the end and after it.
        warmup_by: unit of ``warmup_len``: ``"step"`` or ``"epoch"``; warmup moves every step.
        warmup_len: length of the warmup; 0 for none.
        warmup_mode: ``"linear"`` or ``"constant"``.
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
        max_steps: int | None = -1,
        stop_lr: float = 0.0,
        warmup_by: Literal["step", "epoch"] | None = "step",
        warmup_len: int | None = 0,
        warmup_mode: Literal["linear", "constant"] | None = "linear",
        warmup_begin_lr: float | None = 0.0,
        warmup_lr_ratio: float | None = 1.0,
        step_log_interval: int | None = 1,
        *,
        field: str = "lr",
    ) -> None:
        if (
            max_steps is not None
            and max_steps != -1
            and not (type(max_steps) is int and max_steps < 0)
        ):
            whole("max_steps (or -1 for the run's length)", max_steps, 1)
        number("stop_lr", stop_lr)
        super().__init__(
            warmup=Warmup.of(warmup_by, warmup_len, warmup_mode, warmup_begin_lr, warmup_lr_ratio),
            step_log_interval=step_log_interval,
            field=field,
        )
        self.max_steps = -1 if max_steps is None else max_steps
        self.stop_lr = float(stop_lr)
        self._length = float(self.max_steps)

    def prepare(self, plan: Plan) -> None:
        """Finds M when it was not given."""
        if self.max_steps > 0:
            return
        total = plan.total_steps("CosLrUpdater", "set max_steps, or plan the run by num_steps")
        warn_of_long_warmup("CosLrUpdater", self.warmup_steps, total)
        self._length = max(total - self.warmup_steps, 1)

    def line(self, num_update: int) -> Line:
        """The cosine at an absolute step."""
        length, index = self._length, num_update - self.warmup_steps
        if index >= length:
            if length < 0:
                raise JobError("CosLrUpdater: the run's length is not known yet; set max_steps")
            return 0.0, self.stop_lr
        share = falling(index / length) if index > 0 else 1.0
        return share, self.stop_lr * (1.0 - share)
