"""Intervals: ``every = "100 steps"`` and its like, written once for every plugin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.dispatch import Gate
from hatbus.errors import PluginError
from hatbus.events.declare import hookimpl

if TYPE_CHECKING:
    from collections.abc import Generator

    from hatbus.events.training import Event
    from hatbus.loop.context import Context

ACCEPTED: Final = (
    "accepted: '<n> steps', '<n> epochs', '<n> s', '<n> min' or '<n> h', "
    "then optionally ', first' and ', last'"
)
_PATTERN: Final = re.compile(
    r"(?P<n>\d+(\.\d+)?)\s*(?P<unit>steps?|epochs?|s|min|h)(?P<extra>(\s*,\s*(first|last))*)"
)
_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}
_ONLY_EPOCHS: Final = ("run_epoch", "on_epoch_begin", "on_epoch_end")


class Interval:
    """When a plugin is due.

    "Every n" means ``(id + 1) % n == 0``. An interval in steps or time filters the events of a
    step and what lies inside it; one in epochs filters those and the epoch's own. Events of the
    run, of validation, of checkpoints and of logs are never filtered. Time is counted from the
    first step on, by the clock of rank 0. ``last`` is the last step or epoch of the plan, where
    that can be known: a plan in steps needs a loader with a length to know its last epoch. A run
    that is stopped earlier has no last.

    Attributes:
        gate: open while the plugin is due.
    """

    def __init__(self, n: float, unit: str, *, first: bool = False, last: bool = False) -> None:
        self.n, self.unit, self.first, self.last = n, unit, first, last
        self.gate = Gate()
        self._last_time: float | None = None

    @classmethod
    def parse(cls, text: str, plugin: str) -> Interval:
        """Reads ``"100 steps"``, ``"1 epoch, last"``, ``"30 min"``.

        Raises:
            PluginError: the text is none of these.
        """
        found = _PATTERN.fullmatch(text.strip())
        number = float(found["n"]) if found else 0.0
        counts = found is not None and found["unit"] not in _SECONDS
        if found is None or number <= 0 or (counts and number % 1):
            raise PluginError(f"plugin {plugin!r}: every={text!r} is no interval; {ACCEPTED}")
        unit = found["unit"].rstrip("s") if counts else found["unit"]
        return cls(number, unit, first="first" in found["extra"], last="last" in found["extra"])

    def applies_to(self, event: Event) -> bool:
        """Whether this interval filters an event."""
        if event.name in _ONLY_EPOCHS:
            return self.unit == "epoch"
        return "losses" in event.arguments

    def set_step(self, ctx: Context) -> None:
        """Opens or shuts the gate for the step that is about to start."""
        if self.unit == "epoch":
            return
        step = ctx.global_step_id
        if self.unit == "step":
            due = (step + 1) % int(self.n) == 0
        else:
            due = self._is_time(ctx.control.now())
        is_last = ctx.total_steps is not None and step + 1 == ctx.total_steps
        self.gate.is_open = due or (self.first and step == 0) or (self.last and is_last)

    def _is_time(self, now: float) -> bool:
        """Whether the time has come: that long after the first step, or after it came last."""
        if self._last_time is None:
            self._last_time = now
        due = now - self._last_time >= self.n * _SECONDS[self.unit]
        if due:
            self._last_time = now
        return due

    def set_epoch(self, ctx: Context) -> None:
        """Opens or shuts the gate for the epoch that is about to start."""
        if self.unit == "epoch":
            epoch = ctx.epoch_id
            due = (epoch + 1) % int(self.n) == 0
            self.gate.is_open = (
                due or (self.first and epoch == 0) or (self.last and is_last_epoch(ctx))
            )


def is_last_epoch(ctx: Context) -> bool:
    """Whether the plan ends in the epoch that is about to start; False where nobody can know."""
    if ctx.num_steps is None or ctx.steps_per_epoch is None:
        return ctx.num_epochs == ctx.epoch_id + 1
    left = ctx.steps_per_epoch - ctx.position.step
    return ctx.position.global_step + left >= ctx.num_steps


class Intervals:
    """Core hook wrappers that set every gate before the events it filters."""

    def __init__(self, intervals: list[Interval]) -> None:
        self._intervals = intervals

    @hookimpl(wrapper=True, tryfirst=True)
    def run_epoch(self, ctx: Context) -> Generator[None, Any, Any]:
        """Sets the gates of intervals in epochs."""
        for interval in self._intervals:
            interval.set_epoch(ctx)
        return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Sets the gates of intervals in steps and time."""
        for interval in self._intervals:
            interval.set_step(ctx)
        return (yield)
