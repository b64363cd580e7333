"""Cosine decay by epoch, with warmup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hatbus.errors import JobError
from hatbus.option_values import number
from hatbus_lr.annealing import falling
from hatbus_lr.updater import Line, Updater
from hatbus_lr.warmup import Warmup

if TYPE_CHECKING:
    from hatbus_lr.plan import Plan


class CosineAnnealingLrUpdater(Updater):
    """Cosine decay of the lr of every param group, epoch by epoch, after an optional warmup.

    ::

        lr = stop_lr + (initial - stop_lr) * (1 + cos(pi * epoch_id / num_epochs)) / 2

    Epochs of the warmup count: nothing is subtracted. Source: Loshchilov and Hutter, SGDR,
    equation 5, without restarts; ``hat.callbacks.CosineAnnealingLrUpdater``; without warmup the
    curve of ``torch.optim.lr_scheduler.CosineAnnealingLR`` up to its end.

    Args:
        stop_lr: what the decay aims at, and lr after the end.
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
        number("stop_lr", stop_lr)
        super().__init__(
            update_by="epoch",
            warmup=Warmup.of(warmup_by, warmup_len, warmup_mode, warmup_begin_lr, warmup_lr_ratio),
            step_log_interval=step_log_interval,
            field=field,
        )
        self.stop_lr = float(stop_lr)
        self.num_epochs: int | None = None

    def prepare(self, plan: Plan) -> None:
        """Takes the run's epochs."""
        self.num_epochs = plan.epochs("CosineAnnealingLrUpdater")

    def line(self, num_update: int) -> Line:
        """The cosine at an epoch."""
        if self.num_epochs is None:
            raise JobError(
                "CosineAnnealingLrUpdater: the run's epochs are not known before it starts"
            )
        if num_update >= self.num_epochs:
            return 0.0, self.stop_lr
        share = falling(num_update / self.num_epochs)
        return share, self.stop_lr * (1.0 - share)
