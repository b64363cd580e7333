"""Requests of plugins to the loop: stop, save, validate. Made anywhere, read at one place."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.blame import caller_name
from hatbus.errors import HookError
from hatbus.log import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


STOP_EPOCH: Final = "stop epoch"
SIGNAL: Final = "a signal"
"""Who asks where a signal does."""
LASTING: Final = ("validate", STOP_EPOCH)
"""Wishes that a checkpoint keeps, where it is saved before they are fulfilled."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        wish: ``"stop run"``, ``"stop epoch"``, ``"save"`` or ``"validate"``.
        by: name of the plugin that asked.
        reason: why, in its words.
    """

    wish: str
    by: str
    reason: str


class Control:
    """Collects requests until the loop reads them at the next step's or epoch's end.

    Attributes:
        pending: requests not yet read, in the order they were made.
        stopped: the stop that was granted, once there is one; the run's before the epoch's.
        epoch_stopped: the stop of the epoch that was granted, beside one of the run too.
        is_serving: whether what was granted at a boundary is being done.
    """

    __slots__ = ("_lines", "epoch_stopped", "is_serving", "pending", "stopped")
    is_shared = False
    """Whether ``due`` is to be asked at every boundary: other processes may want something."""

    def __init__(self, lines: Mapping[str, Sequence[str]] | None = None) -> None:
        self.pending: list[Request] = []
        self.stopped: Request | None = None
        self.epoch_stopped: Request | None = None
        self.is_serving = False
        self._lines = lines if lines is not None else {}

    def stop(self, what: str = "run", reason: str = "") -> None:
        """Asks the loop to end something after the present step.

        Args:
            what: the ``"epoch"`` or the ``"run"``.
            reason: why, for the log.

        Raises:
            HookError: it is neither.
        """
        if what not in ("epoch", "run"):
            raise HookError(f"cannot stop {what!r}; accepted: 'epoch', 'run'")
        self._ask(f"stop {what}", reason)

    def save(self, reason: str = "") -> None:
        """Asks for a checkpoint after the present step."""
        self._ask("save", reason)

    def validate(self, reason: str = "") -> None:
        """Asks for a validation after the present step."""
        self._ask("validate", reason)

    def ask_alike(self, *requests: Request) -> None:
        """Requests that every process makes at this very place, and so need not tell each other.

        They are served at the next boundary on all of them, as in a run of one process.
        """
        self.pending.extend(requests)

    def grant(self, request: Request) -> None:
        """Grants a stop; that of the run is not taken back by one of the epoch.

        A signal is what ended the run, also where what it cut short was granted first.
        """
        if request.wish == STOP_EPOCH:
            self.epoch_stopped = request
        is_first = self.stopped is None or self.stopped.wish == STOP_EPOCH
        if is_first or request.by == SIGNAL:
            self.stopped = request

    def leave_epoch(self) -> bool:
        """The epoch ends here; whether a request ended it, which is fulfilled with that."""
        was, self.epoch_stopped = self.epoch_stopped, None
        if self.stopped is was:
            self.stopped = None
        return was is not None

    def state_dict(self) -> dict[str, Any]:
        """What was asked for and still has to be done after a save at this place; often nothing.

        A stop of the run is not for the run that resumes.
        """
        asked = [r for r in (self.epoch_stopped, *self.pending) if r is not None]
        over = [r for r in asked if r.wish == STOP_EPOCH]
        return {"over": plain(over)} if over else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what was asked for; every rank calls this at the same place."""
        asked = [
            Request(*fields)
            for kind in ("over", "asked", "later")
            for fields in state.get(kind, ())
        ]
        for request in asked:
            if request.wish == STOP_EPOCH:
                self.grant(request)
            else:
                self.pending.append(request)

    def due(self, at: str = "") -> bool:
        """Whether there is anything to take at this boundary.

        Args:
            at: which boundary, in words; empty: the end of a step.
        """
        return bool(self.pending)

    def take(self) -> list[Request]:
        """The requests that are due, each wish once, logged; they are not due any more."""
        taken = list({r.wish: r for r in reversed(self._taken())}.values())[::-1]
        for request in taken:
            why = request.reason or "no reason given"
            log.info("%s: asked for by %s (%s)", request.wish, request.by, why)
        return taken

    def withdraw(self, wish: str) -> None:
        """Forgets requests that have become pointless."""
        for request in [r for r in self.pending if r.wish == wish]:
            self.pending.remove(request)  # in place: a signal may add to the list meanwhile

    def anywhere(self, flags: list[bool]) -> list[bool]:
        """Which flags are set on any rank; every rank calls this at the same places."""
        return flags

    def agree(self, found: list[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
        """Of several decisions the reasons on any rank, ``(plugin, reason)``; one exchange."""
        return found

    def now(self) -> float:
        """Seconds on the clock of intervals; every rank reads the same there."""
        return time.monotonic()

    def close(self) -> None:
        """The run is over."""

    def is_owed(self) -> bool:
        """Whether requests are still to be served at the end of the run."""
        return self.due()

    def tell_late(self) -> None:
        """Says what was asked for when nothing could be done any more: the run is over."""
        for request in self.pending:
            if request.wish in ("validate", "save"):
                log.warning(
                    "%s: asked for by %s too late: the run is over", request.wish, request.by
                )

    def _taken(self) -> list[Request]:
        taken, self.pending = self.pending, []
        return taken

    def _ask(self, wish: str, reason: str) -> None:
        frame = sys._getframe(2)  # noqa: SLF001 - documented; the frame that called stop, save, ...
        self.pending.append(Request(wish, caller_name(frame, self._lines), reason))


def plain(requests: Iterable[Request]) -> list[tuple[str, str, str]]:
    """Requests as plain data."""
    return [(r.wish, r.by, r.reason) for r in requests]
