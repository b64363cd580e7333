"""A thread in every process of a run that says where the process is, and ends it when it must.

It beats, so that the others know that the process is there; answers whoever asks where the main
thread is; and ends the process when another has failed, or when the others found that this one
hangs, and the main thread does not end by itself.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import HookError, PeerError
from hatbus.log import log
from hatbus.parallel.board import BEAT_S, told
from hatbus.parallel.places import Place, all_stacks, place_of_main
from hatbus.parallel.stopping import STOP_INSIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus.parallel.board import Board

_LOOK_S: Final = 0.5
_GRACE_S: Final = 6.0
_ANSWER_S: Final = 4.0
_ASKED: Final = "who is late"
_ORPHAN_S: Final = 30.0
STACKS: Final = "stacks"
"""What the log of a rank has before its stacks."""


class Watch:
    """What this process's thread knows.

    Attributes:
        ctx: the state of the run that is on, if one is.
        place: where the main thread was when its collective failed; None: it is still there.
        is_agents_store: whether the board is in torchrun's agent.
    """

    def __init__(self) -> None:
        self.ctx: Any = None
        self.place: Place | None = None
        self.is_agents_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._over = threading.Event()
        self._beats = 0
        self._has_answered = False
        self._ends_at: float | None = None

    def here(self) -> Place:
        """Where the main thread is."""
        return self.place or place_of_main(self.ctx)

    @contextmanager
    def of(self, ctx: Any) -> Iterator[None]:
        """Watches over a run."""
        STOP_INSIDE.begin()
        self.place, self._ends_at, self._has_answered = None, None, False
        self.ctx = ctx
        try:
            yield
        finally:
            self.ctx = None

    def start(self, board: Board) -> None:
        """Begins; it ends before the interpreter does, which must find no thread in a store."""
        STOP_INSIDE.board, beside = board, board.beside()
        self.beat(beside)
        thread = threading.Thread(target=self._watch, args=(beside,), name="hatbus watch")
        thread.daemon = True
        thread.start()
        atexit.register(self._stop, thread)

    def _stop(self, thread: threading.Thread) -> None:
        self._over.set()
        thread.join(_GRACE_S)
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if isinstance(error, BaseException):  # the end of a group would wait for the others
            leave_at_once(getattr(error, "exit_code", 1))

    def _watch(self, board: Board) -> None:
        beat_at, gone_at = 0.0, None
        while not self._over.wait(_LOOK_S):
            now = time.monotonic()
            try:
                if now >= beat_at:
                    beat_at = now + BEAT_S
                    self.beat(board)
                if self.ctx is not None:
                    STOP_INSIDE.answer(board)
                    self._answer(board)
                    self._end(board, now)
            except Exception:  # noqa: BLE001 - the board has gone, and with it the run
                gone_at = gone_at or now
                self._end_alone(board, now - gone_at)

    def _end_alone(self, board: Board, since: float) -> None:
        """Ends the process some time after the board has gone, if it is still in a run."""
        if self.ctx is None or since < (_GRACE_S if self._has_answered else _ORPHAN_S):
            return
        log.error(
            "hatbus: error: [rank %d] the others have gone; it was %s", board.rank, self.here()
        )
        leave_at_once(HookError.exit_code if self._has_answered else PeerError.exit_code)

    def beat(self, board: Board) -> None:
        """Says that the process is there, and where."""
        self._beats += 1
        note = {"beat": self._beats, "place": self.here().as_json()}
        board.put(f"beat {board.rank}", json.dumps(note))

    def _answer(self, board: Board) -> None:
        """Says where the main thread is, when somebody waits too long; the log gets all stacks."""
        asked = board.look(board.of_fit(_ASKED))
        if asked is None or self._has_answered:
            return
        self._has_answered = True
        board.put(board.of_fit(f"at {board.rank}"), json.dumps(self.here().as_json()))
        text = f"[rank {board.rank}] {STACKS}, since {asked}:\n{all_stacks()}"
        board.put(f"stacks {board.rank}", text)
        log.warning("%s", text)

    def _end(self, board: Board, now: float) -> None:
        """Ends the process some time after a failure was reported, if it does not end by itself."""
        report = board.failure()
        if report is None:
            return
        is_guilty = json.loads(report)["rank"] == board.rank
        if self._ends_at is None:
            self._ends_at = now + (_GRACE_S / 3 if is_guilty else _GRACE_S)
        if now < self._ends_at:
            return
        code = HookError.exit_code if is_guilty else PeerError.exit_code
        log.error("hatbus: error: [rank %d] %s", board.rank, told(report))
        with suppress(Exception):
            board.count(board.of_fit("heard"))
        leave_at_once(code)


def leave_at_once(code: int) -> None:
    """Ends the process, whatever its threads do."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


WATCH: Final = Watch()
"""This process's."""


def answers_of(board: Board, here: Place, why: str) -> dict[int, str | None]:
    """Where every process is; None: it does not say so in time.

    Args:
        board: of the run.
        here: where this one's main thread was.
        why: somebody asks, for the logs.
    """
    WATCH.place = here
    board.put(board.of_fit(f"at {board.rank}"), json.dumps(here.as_json()))
    if board.look(board.of_fit(_ASKED)) is None:
        board.put(board.of_fit(_ASKED), why)
    found: dict[int, str | None] = dict.fromkeys(range(board.world))
    until = time.monotonic() + _ANSWER_S
    while time.monotonic() < until and None in found.values():
        for rank, answer in found.items():
            if answer is None:
                found[rank] = board.look(board.of_fit(f"at {rank}"))
        time.sleep(0.05)
    return found
