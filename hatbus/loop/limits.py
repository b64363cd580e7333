"""Limits of a run beside its plan: for a quick look, or where time is lent."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from hatbus.events.declare import hookimpl
from hatbus.log import log
from hatbus.loop.control import Request
from hatbus.loop.signals import STOPPED_AND_SAVED, deadline

if TYPE_CHECKING:
    from hatbus.bus.bus import Bus
    from hatbus.loop.context import Context

LIMITS: Final = "core.limits"


class Limits:
    """Asks for the end after so many steps, or so much time; as a signal does, after a whole step.

    Args:
        steps: of this fit; its epoch then ends as if the data was over. None: no such limit.
        seconds: since the loop began; the state is saved. None: no such limit.
        saves: whether a plugin writes checkpoints.
    """

    def __init__(self, steps: int | None, seconds: float | None, *, saves: bool) -> None:
        self._steps, self._seconds, self._saves = steps, seconds, saves
        self._end = 0.0
        self._is_late, self._saved_at = False, -1

    @hookimpl(wrapper=True, tryfirst=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Takes the time; a validation that the time runs out in is cut short meanwhile."""
        if self._seconds is None:
            return (yield)
        self._end = ctx.control.now() + self._seconds
        with deadline(self._seconds):
            result = yield
        self._is_late = self._is_late or ctx.control.now() >= self._end
        return result

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Asks for the end where it is due."""
        if ctx.exception is not None:
            return
        if self._steps is not None and ctx.position.global_step - ctx.began_at == self._steps:
            why = f"{self._steps} steps"
            ends = (Request(f"stop {what}", "limit_steps", why) for what in ("epoch", "run"))
            ctx.control.ask_alike(*ends)
        if self._seconds is not None and not self._is_late and ctx.control.now() >= self._end:
            self._is_late = True
            wishes = ("save", "stop run") if self._saves else ("stop run",)
            why = f"{self._seconds:g} s"
            ctx.control.ask_alike(*(Request(wish, "max_time", why) for wish in wishes))

    @hookimpl
    def on_checkpoint_saved(self, ctx: Context) -> None:
        """Remembers which step is safe."""
        self._saved_at = ctx.position.global_step

    def exit_code(self, ctx: Context) -> int:
        """75 where time ended the run with its state saved, for a scheduler to start it again."""
        stopped = ctx.control.stopped
        if not self._is_late or stopped is None or stopped.wish != "stop run":
            return 0
        if self._saved_at == ctx.position.global_step:
            return STOPPED_AND_SAVED
        log.warning("stopped by max_time, and no checkpoint was saved")
        return 0


def set_limits(bus: Bus, steps: int | None, seconds: float | None, *, saves: bool) -> None:
    """Puts the limits of a fit in the place of those of the last one."""
    if LIMITS in bus.members:
        bus.unregister(LIMITS)
    if steps is not None or seconds is not None:
        limits = Limits(steps, seconds, saves=saves)
        bus.register(limits, LIMITS, core=True, outermost=True)


def exit_code(bus: Bus, ctx: Context) -> int:
    """With what code a process ends whose run is over."""
    limits: Any = bus.members[LIMITS].plugin if LIMITS in bus.members else None
    return 0 if limits is None else int(limits.exit_code(ctx))
