"""Ending early together: a signal that one process got, in the middle of a validation.

A validation has no exchange in each of its steps, so the processes are at different ones. The one
that got the signal leaves a note; the watch of every process answers with the next step that its
main thread will reach, which waits there until all have answered; all leave at the last of these.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

from hatbus.loop.signals import stop_wanted
from hatbus.parallel.launch import restarts_left

if TYPE_CHECKING:
    from hatbus.loop.context import Context
    from hatbus.parallel.board import Board

_NOTE: Final = "stop inside"


class StopInside:
    """Where this process is in a validation, and where it will leave it.

    Attributes:
        board: of the run.
    """

    board: Board

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at = (0, 0)
        self._limit: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None

    def begin(self) -> None:
        """A run begins."""
        self.__init__()  # type: ignore[misc]  # nothing of the last one counts

    def answer(self, board: Board) -> None:
        """Passes a signal on, and says how far this process goes; for the watch's thread."""
        if self._limit is not None:
            return
        key = board.of_fit(_NOTE)
        if stop_wanted():
            board.put(key, "")
        elif board.look(key) is None:
            return
        with self._lock:
            self._limit = (self._at[0], self._at[1] + 1)
        board.put(board.of_fit(f"{_NOTE} {board.rank}"), json.dumps(self._limit))

    def is_here(self, step: int) -> bool:
        """Whether all leave at this step."""
        board = self.board
        with self._lock:
            self._at = (self._at[0] + (step == 0), step)
            limit = self._limit
        if limit is None or self._at < limit:
            return False
        if self._last is None:
            keys = {rank: board.of_fit(f"{_NOTE} {rank}") for rank in range(board.world)}
            notes = (json.loads(board.wait(key, f"rank {rank}")) for rank, key in keys.items())
            self._last = max((note[0], note[1]) for note in notes)
        return self._at >= self._last


STOP_INSIDE: Final = StopInside()
"""This process's."""


def stop_agreed(ctx: Context, step: int) -> bool:
    """Whether the work inside a step, such as a validation, ends here for a signal.

    All processes get the same answer at the same step; in most steps that takes no exchange.

    Args:
        ctx: the state of the run.
        step: of that work, from 0 on; every one has to be asked for.
    """
    if ctx.world_size == 1:
        return stop_wanted()
    return STOP_INSIDE.is_here(step)


def end_agent(_stop: int) -> None:
    """Ends torchrun's agent, after a stop that somebody asked for by a signal.

    It would start the processes again: to it, whatever does not exit with 0 has failed.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        end_agent_of_restart()


def end_agent_of_restart() -> None:
    """Ends torchrun's agent where the others have not heard of a signal, and so do not."""
    if restarts_left() > 0:
        os.kill(os.getppid(), signal.SIGTERM)
