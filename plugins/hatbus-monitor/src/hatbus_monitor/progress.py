"""``Progress``: shows where a run stands while it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from hatbus import hookimpl, plugin
from hatbus.evaluation import mean_losses
from hatbus.option_values import names, number, one_of
from hatbus_monitor.batch_size import samples_of_step
from hatbus_monitor.one_transfer import numbers
from hatbus_monitor.plan import Plan
from hatbus_monitor.progress_display import KINDS, Display, display_of
from hatbus_monitor.progress_view import Snapshot

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus import Context

_EVERY = 10
_SMOOTHING = 0.3
"""Weight of the newest samples/s in the shown ones."""


@plugin(stage="report", after="stats_monitor", ranks="zero")
class Progress:
    """A progress bar in a terminal or notebook, plain lines in a pipe or log file.

    Shows epochs, steps, the loss (of every task; of several processes their mean, of the first step
    and every tenth), the learning rate, published metrics, samples/s
    over all ranks and the time that remains; a bar of its own for a validation, and in a notebook a
    table of the epochs that are over. What is printed or logged meanwhile appears above the bars.
    Values are read from the device only when they are shown. A plugin that works long inside one
    step shows how far it is with ``ctx.storage["progress"](title, number, total)``, which costs
    next to nothing between two refreshes.

    Args:
        refresh: seconds between two looks of a live display.
        plain_interval: seconds between two lines where there is none; every epoch's end is shown
            too.
        show: patterns (``*``, ``?``) of the published names that are shown beside loss and lr.
        display: ``"auto"``, ``"live"``, ``"plain"`` or ``"notebook"``.

    Raises:
        JobError: a value that cannot be used.
    """

    def __init__(
        self,
        refresh: float = 0.2,
        plain_interval: float = 10.0,
        show: Sequence[str] = ("train/*", "val*"),
        display: str = "auto",
    ) -> None:
        for name, seconds in (("refresh", refresh), ("plain_interval", plain_interval)):
            number(f"progress: {name}", seconds)
        self.refresh, self.plain_interval = refresh, plain_interval
        shown = (show,) if isinstance(show, str) else show
        names("progress: show", shown)
        one_of("progress: display", display, KINDS)
        self.show, self.display = tuple(shown), display
        self._now = time.monotonic
        self._screen: Display | None = None
        self._plan = Plan()
        self._losses: dict[str, Tensor] = {}
        self._keeps_losses = False
        self._nested: tuple[str, int, int | None] | None = None
        self._samples = 0
        self._speed = self._began = self._window_began = self._next = 0.0
        self._interval = self._pause_began = 0.0
        self._first: tuple[float, int] | None = None
        self._shown_line: tuple[int, int] | None = None
        self._epochs: list[tuple[int, Mapping[str, object], float]] = []
        self._epoch_began = 0.0

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Opens the display; the counters are those of a resumed run already."""
        self._began = self._window_began = self._now()
        self._first, self._samples, self._speed, self._nested = None, 0, 0.0, None
        self._losses, self._epoch_began = {}, self._began
        if ctx.position.global_step == 0:  # a second fit goes on with the table
            self._epochs = []
        self._keeps_losses = len(getattr(ctx.data, "tasks", ())) > 1 or ctx.world_size > 1
        ctx.storage["progress"] = lambda title, number, total=None: self._show_nested(
            ctx, title, number, total
        )
        if ctx.storage.get("quiet"):
            return
        self._screen = display_of(self.display)
        self._interval = self.refresh if self._screen.is_live else self.plain_interval
        self._next = self._began + self._interval
        self._screen.start(self._snapshot(ctx))

    def wants_mean_losses(self, ctx: Context) -> bool:
        """Of several processes it shows the mean over all, of the first step and every tenth."""
        done = ctx.position.global_step
        return done == 1 or done % _EVERY == 0

    @hookimpl
    def on_step_end(self, ctx: Context, losses: Mapping[str, Tensor]) -> None:
        """Counts the step; shows the state when it is time."""
        self._samples += samples_of_step(ctx.batches)
        losses = losses if ctx.world_size == 1 else mean_losses(ctx)
        # A step may hold one task only, or have no mean over the processes: the last loss stays.
        if self._keeps_losses:
            self._losses.update((name, loss.detach()) for name, loss in losses.items())
        now = self._now()
        if self._first is None:  # the first step is slow (compilation, caches): not in the pace
            self._first = (now, ctx.position.global_step)
        if now >= self._next and ctx.exception is None:
            self._losses.update(losses)
            self._look(ctx)

    @hookimpl
    def on_validation_begin(self, ctx: Context) -> None:
        """Shows that a validation runs."""
        self._nested, self._pause_began = ("validation", 0, None), self._now()
        self._look_if_live(ctx)

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        """Takes the validation's bar away."""
        self._nested = None
        self._window_began += self._now() - self._pause_began  # samples/s are those of training
        self._look_if_live(ctx)

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Shows the epoch's last state."""
        if ctx.exception is None:
            self._plan.epoch_ended(ctx)
            self._losses.update(ctx.losses if ctx.world_size == 1 else {})
            self._look(ctx, ends_epoch=ctx.position.step == 0)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Shows how the run ended and leaves the terminal as it was found."""
        screen, self._screen = self._screen, None
        ctx.storage.pop("progress", None)
        if screen is None:
            return
        try:
            if screen.is_live or ctx.exception is not None:
                screen.show(self._snapshot(ctx))
        finally:
            screen.stop()
            self._losses = {}

    def _show_nested(self, ctx: Context, title: str, number: int, total: int | None) -> None:
        """Shows how far something inside a step is, when it is time."""
        self._nested = (title, number, total)
        if self._now() >= self._next:
            self._look(ctx)

    def _look_if_live(self, ctx: Context) -> None:
        if self._screen is not None and self._screen.is_live:
            self._look(ctx)

    def _look(self, ctx: Context, *, ends_epoch: bool = False) -> None:
        """Reads the values from the device and shows them."""
        if self._screen is None:
            return
        now = self._now()
        spent = now - self._window_began
        if self._samples and spent > 0:
            speed = self._samples * ctx.world_size / spent
            self._speed += (_SMOOTHING if self._speed else 1.0) * (speed - self._speed)
            self._samples, self._window_began = 0, now
        snapshot = self._snapshot(ctx)
        if ends_epoch:
            self._epochs.append((ctx.epoch_id + 1, snapshot.values, now - self._epoch_began))
            self._epoch_began = now
        self._screen.show(snapshot)
        self._next = self._now() + self._interval

    def _snapshot(self, ctx: Context) -> Snapshot:
        total, done = self._plan.total_steps(ctx), ctx.position.global_step
        length = self._plan.steps_per_epoch(ctx)
        epoch, step = ctx.position.epoch, ctx.position.step
        if step == 0 and done and ctx.epoch_id < epoch:  # the epoch that has just ended
            epoch, step = ctx.epoch_id, ctx.step_id + 1
        return Snapshot(
            epoch=epoch + 1,
            num_epochs=self._plan.num_epochs(ctx),
            step=step,
            epoch_steps=length,
            done=done,
            total=total,
            samples_per_second=self._speed,
            elapsed=self._now() - self._began,
            remaining=self._remaining(done, total),
            values=self._values(ctx),
            nested=self._nested,
            ending=ending(ctx),
            epochs=self._epochs,
        )

    def _remaining(self, done: int, total: int | None) -> float:
        """Seconds to the planned end, at the pace since the first step; NaN: nobody knows."""
        if total is None or self._first is None or done <= self._first[1]:
            return 0.0 if total == done else float("nan")
        began, at = self._first
        return (self._now() - began) / (done - at) * max(total - done, 0)

    def _values(self, ctx: Context) -> dict[str, Any]:
        """Losses, learning rate and published metrics, as numbers."""
        values: dict[str, Any] = dict(sorted(self._losses.items()))
        if ctx.optimizer is not None:
            values["lr"] = ctx.optimizer.param_groups[0]["lr"]
        twins = {f"train/{name}_step" for name in values}  # the losses themselves are newer
        for name, value in ctx.latest.items():
            is_wanted = name not in twins and any(fnmatchcase(name, one) for one in self.show)
            if is_wanted and is_single(value):
                values.setdefault(name, value)
        return dict(zip(values, numbers(values.values()), strict=True))


def is_single(value: Any) -> bool:
    """Whether a published value is one number."""
    return isinstance(value, (int, float)) or getattr(value, "numel", lambda: 0)() == 1


def ending(ctx: Context) -> str:
    """What ends a run early, in a word or two; empty when nothing does."""
    exception, stopped = ctx.exception, ctx.control.stopped
    if exception is None:
        return f"stopped ({stopped.reason or stopped.by})" if stopped is not None else ""
    if isinstance(exception, KeyboardInterrupt):
        return "interrupted"
    return f"failed ({type(exception).__name__})"
