"""One cycle: cosine up to the peak, cosine down to the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hatbus import hookimpl
from hatbus.errors import JobError
from hatbus.log import log
from hatbus.option_values import number
from hatbus_lr.annealing import annealing_cos, falling
from hatbus_lr.updater import Line, Updater
from hatbus_lr.warmup import Warmup

if TYPE_CHECKING:
    from hatbus_lr.plan import Plan


class OneCycleUpdater(Updater):
    """The 1cycle policy: one half cosine up, one down, over the whole run.

    With T the run's steps, W = ``T * pct_start`` and the group's initial lr as the peak::

        g < W:   from lr_max / div_factor to peak along a half cosine over W steps
        g >= W:  from peak to stop_lr along a half cosine over T - W steps, then stop_lr

    Source: Smith and Topin, Super-Convergence; ``hat.callbacks.OneCycleUpdater``.

    Args:
        lr_max: what the start is a part of; should be the optimizer's lr (a warning says if not).
        div_factor: the start is ``lr_max / div_factor``; at least 1.
        pct_start: share of the run that goes up, 0 to 1.
        stop_lr: lr at the end and after it.
        warmup_by: kept from HAT: ``"step"`` or ``"epoch"``; the way up moves every step in both.
        step_log_interval: log every so many steps (with ``warmup_by="epoch"`` at each epoch's
            begin); None for never.
        field: the number of the param groups that is set: ``"lr"``, ``"weight_decay"``,
            ``"momentum"``, ``"beta1"``, ...

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(
        self,
        lr_max: float = 0.001,
        div_factor: float = 10.0,
        pct_start: float = 0.4,
        stop_lr: float = 0.0,
        warmup_by: Literal["step", "epoch"] | None = "step",
        step_log_interval: int | None = 1,
        *,
        field: str = "lr",
    ) -> None:
        number("lr_max", lr_max, above=True)
        number("div_factor", div_factor, 1.0)
        number("pct_start", pct_start, 0.0, 1.0)
        number("stop_lr", stop_lr)
        super().__init__(
            warmup=Warmup(warmup_by or "step"), step_log_interval=step_log_interval, field=field
        )
        self.lr_max, self.div_factor = lr_max, div_factor
        self.pct_start, self.stop_lr = pct_start, float(stop_lr)
        self._start = lr_max / div_factor
        self._total = 0
        self._down = 0.0

    annealing_cos = staticmethod(annealing_cos)

    @hookimpl
    def on_loop_begin(
        self, optimizer: Any, data_loader: Any, num_epochs: int | None, **kwargs: Any
    ) -> None:
        """Prepares, and warns when ``lr_max`` is not the optimizer's."""
        super().on_loop_begin(optimizer, data_loader, num_epochs, **kwargs)
        initials = [self.field.remember(group) for group in optimizer.param_groups]
        if any(initial != self.lr_max for initial in initials):
            log.warning(
                "OneCycleUpdater: lr_max is %r, but the peak is the optimizer's own %s: %s",
                self.lr_max,
                self.field.name,
                ", ".join(map(repr, initials)),
            )

    def prepare(self, plan: Plan) -> None:
        """Takes the run's length."""
        self._total = plan.total_steps("OneCycleUpdater", "plan the run by num_steps")
        self.warmup_steps = self._total * self.pct_start
        self._down = self._total - self.warmup_steps

    def warmup_line(self, num_update: int) -> Line:
        """The way up at a step below W."""
        length = self.warmup_steps
        if num_update >= length:
            return 1.0, 0.0
        left = falling(num_update / length)
        return 1.0 - left, self._start * left

    def line(self, num_update: int) -> Line:
        """The way down at an absolute step from W on."""
        length, index = self._down, num_update - self.warmup_steps
        if index >= length:
            if not self._total:
                raise JobError("OneCycleUpdater: the run's length is not known before it starts")
            return 0.0, self.stop_lr
        share = falling(index / length) if index > 0 else 1.0
        return share, self.stop_lr * (1.0 - share)
