"""SIGTERM and SIGINT end a run after the present step, state saved; SIGUSR1 saves and goes on.

A handler only asks, as any plugin would, for a save and a stop at the end of the step. A second
SIGTERM or SIGINT ends the process at once. In a program of the user's, SIGINT (Ctrl-C, a notebook's
"interrupt") is a ``KeyboardInterrupt`` at last, and a second one is one at once.

Worker processes of loaders do not hear these signals: one to the whole process group would else
kill them, and with them the step that was to be finished.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Final

from hatbus.events.declare import hookimpl
from hatbus.log import log
from hatbus.loop.control import SIGNAL, Request
from hatbus.option_values import short

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from hatbus.loop.context import Context
    from hatbus.loop.control import Control

STOPPED_AND_SAVED: Final = 75
"""Exit code of a run that was stopped by a signal and can be resumed."""
_STOPS: Final = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGINT") if hasattr(signal, n))
_SAVES: Final = tuple(getattr(signal, n) for n in ("SIGUSR1",) if hasattr(signal, n))
_FORWARDED_S: Final = 20.0
"""Seconds in which a second signal is torchrun's, which hands on to its processes what it got."""
_active: list[Signals] = []
_deadlines: list[float] = []
_forking: list[bool] = []
_ends_after: list[bool] = []
"""Whether this process is there for one run, and ends when that is over."""
_before_leaving: list[Callable[[], None]] = []
"""What a process of a restart does when a signal ends it before the loop."""
_is_deaf: list[bool] = []
"""Whether this process is a worker that hears nothing."""


class Signals:
    """Serves the signals of one process while its loop is on.

    Attributes:
        stop: the signal that asks for the end; 0 before one came.
    """

    def __init__(self) -> None:
        self.stop = 0
        self._control: Control | None = None
        self._saved_at, self._stopped_at, self._ends_process = -1, 0.0, False

    @hookimpl(wrapper=True, tryfirst=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Serves signals inside the loop; handlers are put back on every way out."""
        self.stop, self._control, self._saved_at = 0, ctx.control, -1
        self._ends_process = "job" in ctx.storage or _is_by_torchrun()
        if not can_serve():
            return (yield)
        kept = {number: signal.signal(number, self._note) for number in (*_STOPS, *_SAVES)}
        _active.append(self)
        try:
            result = yield
            if _ends_after and kept.get(signal.SIGTERM) in (signal.SIG_DFL, _leave_restart):
                kept[signal.SIGTERM] = signal.SIG_IGN  # all is saved: what is left is to say so
            return result
        finally:
            _active.remove(self)
            for number, handler in kept.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            if self.stop and _is_by_torchrun():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the agent's, on the way out

    @hookimpl(wrapper=True)
    def load_checkpoint(self, ctx: Context) -> Generator[None, Any, Any]:
        """Remembers that the run stands where it was saved."""
        loaded = yield
        if loaded is not False:
            self._saved_at = ctx.position.global_step
        return loaded

    @hookimpl
    def on_checkpoint_saved(self, ctx: Context) -> None:
        """Remembers which step is safe."""
        self._saved_at = ctx.position.global_step

    def heard(self, ctx: Context) -> int:
        """The signal that ended the run, which another process may have got; 0: none did."""
        granted = ctx.control.stopped
        if not self.stop and granted is not None and granted.by == SIGNAL:
            self.stop = signal.SIGTERM
        return self.stop

    def leave(self, ctx: Context, ending: Callable[[int], None]) -> None:
        """Ends the process if a signal asked for that; for the end of ``fit``.

        Args:
            ctx: the state of the run.
            ending: called before, with the signal's number.

        Raises:
            SystemExit: 75 when the state was saved, else 128 + the signal's number.
            KeyboardInterrupt: SIGINT, in a program that is neither a job nor torchrun's.
        """
        if not self.heard(ctx):
            return
        ending(self.stop)
        name = signal.Signals(self.stop).name
        if self.stop == signal.SIGINT and not self._ends_process:
            is_safe = self._saved_at == ctx.position.global_step
            raise KeyboardInterrupt(
                f"after step {ctx.position.global_step}, {'' if is_safe else 'not '}saved; "
                "trainer.fit() goes on from here"
            )
        if self._saved_at == ctx.position.global_step:
            way = "resume = 'auto'"
            if "job" in ctx.storage and ctx.run_dir is not None:
                way = f"`hatbus resume {short(ctx.run_dir)}`"
            log.info("stopped by %s, state saved; go on with %s", name, way)
            raise SystemExit(STOPPED_AND_SAVED)
        log.warning("stopped by %s, and no checkpoint was saved", name)
        raise SystemExit(128 + self.stop)

    def _note(self, number: int, _frame: object) -> None:
        if self.stop and number in _STOPS:
            if _is_by_torchrun() and time.monotonic() - self._stopped_at < _FORWARDED_S:
                return
            if number == signal.SIGINT and not self._ends_process:
                raise KeyboardInterrupt
            os._exit(128 + number)
        wishes = ["save"]
        if number in _STOPS:
            self.stop, self._stopped_at = number, time.monotonic()
            wishes.append("stop run")
        name, pending = signal.Signals(number).name, self._control.pending  # type: ignore[union-attr]  # set before the handlers are
        pending.extend(Request(wish, SIGNAL, name) for wish in wishes)


def ignore_saves(
    *, ends_after: bool = False, before_leaving: Callable[[], None] | None = None
) -> None:
    """From now on a signal that asks for a checkpoint does not end the process; for its start.

    Before the loop there is nothing to save yet.

    Args:
        ends_after: the process ends when its run is over; a SIGTERM that comes in between, when
            there is nothing left to save, does not make a failure of it.
        before_leaving: what a process that torchrun has started again does when a signal ends it.
    """
    _before_leaving[:] = [] if before_leaving is None else [before_leaving]
    _ends_after[:] = [True] if ends_after else []
    for number in _SAVES if can_serve() else ():
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and can_serve():
        signal.signal(signal.SIGTERM, _leave_restart)


def _is_by_torchrun() -> bool:
    return "TORCHELASTIC_RESTART_COUNT" in os.environ


def _leave_restart(_number: int, _frame: object) -> None:
    """What was saved before the restart is all there is."""
    for before in _before_leaving:
        before()
    os._exit(STOPPED_AND_SAVED)


def can_serve() -> bool:
    """Whether this thread may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def stop_wanted() -> bool:
    """Whether a signal asked the run to end, or its time is over; for long work inside a step."""
    for served in _active:  # no generator: a validation asks before every batch
        if served.stop:
            return True
    return bool(_deadlines) and any(time.monotonic() >= end for end in _deadlines)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """From so many seconds on, the end of the run is wanted."""
    end = time.monotonic() + seconds
    _deadlines.append(end)
    try:
        yield
    finally:
        _deadlines.remove(end)


@contextmanager
def held(method: str | None = None) -> Iterator[None]:
    """Processes that are started in here are deaf to the signals that the run serves.

    They still end when their parent terminates them. Those that are not forked from this process
    inherit that the signals are blocked, and have to call ``Deaf`` themselves.

    Args:
        method: how they are started: "fork", "spawn" or "forkserver"; None: Python's default.
    """
    if not _active:
        yield
        return
    is_forked = (method or multiprocessing.get_start_method()) == "fork"
    if not is_forked:
        resource_tracker.ensure_running()  # which would unblock the signals when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPS, *_SAVES))
    _forking.append(is_forked)
    try:
        yield
    finally:
        _forking.pop()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Deaf:
    """A worker's first call: it hears nothing but its trainer's ``Process.terminate``.

    Args:
        then: what the loader wanted to be called with the worker's number.
    """

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        self.then, self.trainer, self.active = then, os.getpid(), bool(_active)

    def __call__(self, worker: int) -> None:
        """Blocks the signals, unless the worker was forked and does so already."""
        if self.active and not _is_deaf:
            signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOPS, *_SAVES))
            _listen(self.trainer)
        if self.then is not None:
            self.then(worker)


def _deafen() -> None:
    """In a new child: leaves the inherited block on, and reads the blocked signals in a thread."""
    if _forking and _forking[-1]:
        _listen(os.getppid())


def _listen(parent: int) -> None:
    _is_deaf.append(True)
    threading.Thread(target=_hear_parent, args=(parent,), daemon=True).start()


def _hear_parent(parent: int) -> None:
    """Obeys SIGTERM of the parent (``Process.terminate``) and drops all others."""
    while True:
        found = signal.sigwaitinfo((*_STOPS, *_SAVES))
        if found.si_signo == signal.SIGTERM and found.si_pid == parent:
            os._exit(0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deafen)
