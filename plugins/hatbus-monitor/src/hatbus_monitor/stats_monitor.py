"""``StatsMonitor``: where the time of a run goes.

Source: ``hat.callbacks.StatsMonitor``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hatbus import hookimpl, plugin
from hatbus.log import log
from hatbus.loop import is_cut_short
from hatbus.option_values import whole
from hatbus_monitor.batch_size import samples_of_step
from hatbus_monitor.durations import clock_time, of_total, rate, short_time
from hatbus_monitor.plan import Plan

if TYPE_CHECKING:
    from hatbus import Context


class Window:
    """What happened since the last report.

    Attributes:
        began: when the window was opened.
        steps, samples: counted on this process.
        waiting: seconds that were spent waiting for data.
        paused: seconds of validation and checkpoints, which are no part of a step.
    """

    __slots__ = ("began", "paused", "samples", "steps", "waiting")

    def __init__(self, began: float) -> None:
        self.began = began
        self.steps = self.samples = 0
        self.waiting = self.paused = 0.0

    def values(self, now: float, world_size: int) -> dict[str, float]:
        """The published values: seconds per step, and samples per second over all ranks."""
        steps, busy = max(self.steps, 1), max(now - self.began - self.paused, 1e-12)
        return {
            "time/step": busy / steps,
            "time/data": self.waiting / steps,
            "time/samples_per_second": self.samples * world_size / busy,
        }


@plugin(stage="report", ranks="zero")
class StatsMonitor:
    """Logs and publishes the time per step, the wait for data, samples/s and the time that remains.

    A step's time is the time since the last report, by the number of steps; the wait for data is
    part of it, validation and checkpoints are not. Steps are counted, never timed one by one, so
    nothing waits for the device: over many steps the mean is right.

    Published: ``time/step``, ``time/data`` (seconds), ``time/samples_per_second``, ``time/epoch``.

    Args:
        log_freq: report every so many steps.
        batch_size: samples of one step on one rank, where tensors and lists of the batch do not
            show it (``hatbus.data.samples_in``).

    Raises:
        JobError: a value that cannot be used.
    """

    def __init__(self, log_freq: int = 200, batch_size: int | None = None) -> None:
        whole("stats_monitor: log_freq", log_freq, 1)
        if batch_size is not None:
            whole("stats_monitor: batch_size", batch_size, 1)
        self.log_freq, self.batch_size = log_freq, batch_size
        self._prefix = ""
        self._now = time.monotonic
        self._plan = Plan()
        self._window = Window(0.0)
        self._began = self._epoch_began = self._epoch_paused = self._pause_began = 0.0
        self._pauses = 0
        self._first_step = self._epoch_first_step = 0

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Starts the clock; the counters are those of a resumed run already."""
        self._began, self._first_step = self._now(), ctx.position.global_step
        self._window, self._pauses = Window(self._began), 0
        self._prefix = ctx.bus.log_prefix(self)
        if ctx.data is not None:  # a loop of somebody else's says itself how long it waited
            ctx.data.times_waits = True

    def published_names(self, ctx: Any) -> list[str]:
        """Times and samples."""
        names = ("time/step", "time/data", "time/samples_per_second", "time/epoch")
        return [f"{self._prefix}{name}" for name in names]

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Says which epoch begins."""
        self._epoch_began, self._epoch_paused = self._now(), 0.0
        self._epoch_first_step = ctx.position.global_step
        where = f", from step {ctx.step_id + 1}" if ctx.step_id else ""
        log.info("epoch %s begins%s", of_total(ctx.epoch_id + 1, self._plan.num_epochs(ctx)), where)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Counts the step; reports where that is due."""
        window = self._window
        window.steps += 1
        size = self.batch_size
        window.samples += size if size is not None else samples_of_step(ctx.batches)
        window.waiting += ctx.data_wait
        if (ctx.global_step_id + 1) % self.log_freq == 0 and ctx.exception is None:
            self._report(ctx)

    @hookimpl
    def on_validation_begin(self) -> None:
        """Stops the steps' clock."""
        self._pause()

    @hookimpl
    def on_validation_end(self) -> None:
        """Starts the steps' clock again."""
        self._go_on()

    @hookimpl(wrapper=True)
    def save_checkpoint(self) -> Any:
        """Leaves the writing of a checkpoint out of the step's time."""
        self._pause()
        try:
            return (yield)
        finally:
            self._go_on()

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Says what the epoch cost."""
        if ctx.exception is not None:
            return
        self._plan.epoch_ended(ctx)
        steps = ctx.position.global_step - self._epoch_first_step
        seconds = self._now() - self._epoch_began
        if not is_cut_short(ctx):
            ctx.log({f"{self._prefix}time/epoch": seconds})
        log.info(
            "epoch %s: %s for %d steps%s, %s left",
            of_total(ctx.epoch_id + 1, self._plan.num_epochs(ctx)),
            short_time(seconds),
            steps,
            f" ({short_time(self._epoch_paused)} of it validation and checkpoints)"
            if self._epoch_paused >= 1e-3
            else "",
            clock_time(self._remaining(ctx)),
        )

    def _report(self, ctx: Context) -> None:
        now = self._now()
        values = self._window.values(now, ctx.world_size)
        self._window = Window(now)
        ctx.log({f"{self._prefix}{name}": value for name, value in values.items()})
        log.info(
            "epoch %s, step %s (%s of the run): %s a step (%s waiting for data), %s samples/s, "
            "%s left",
            of_total(ctx.epoch_id + 1, self._plan.num_epochs(ctx)),
            of_total(ctx.step_id + 1, self._plan.steps_per_epoch(ctx)),
            of_total(ctx.global_step_id + 1, self._plan.total_steps(ctx)),
            short_time(values["time/step"]),
            short_time(values["time/data"]),
            rate(values["time/samples_per_second"]),
            clock_time(self._remaining(ctx)),
        )

    def _remaining(self, ctx: Context) -> float:
        """Seconds to the planned end, at the pace of this process so far; NaN: nobody knows."""
        total, done = self._plan.total_steps(ctx), ctx.position.global_step
        ran = done - self._first_step
        if total is None or ran < 1:
            return float("nan")
        return (self._now() - self._began) / ran * max(total - done, 0)

    def _pause(self) -> None:
        if not self._pauses:
            self._pause_began = self._now()
        self._pauses += 1

    def _go_on(self) -> None:
        self._pauses -= 1
        if not self._pauses:
            spent = self._now() - self._pause_began
            self._window.paused += spent
            self._epoch_paused += spent
