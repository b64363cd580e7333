"""A thread in every process of a run that says where the process is, and ends it when it must.

It beats, so that the others know that the process is there; answers whoever asks where the main
thread is (in which plugin and event, which step, and whether it waits); and ends the process when
another has failed, or when the others found that this one hangs, and the main thread does not end
by itself.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.blame import blame_of
from hatbus.bus.member import is_core
from hatbus.errors import HookError, PeerError
from hatbus.log import log
from hatbus.parallel.board import BEAT_S, told
from hatbus.parallel.stopping import STOP_INSIDE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from hatbus.parallel.board import Board

_LOOK_S: Final = 0.5
_GRACE_S: Final = 6.0
_ANSWER_S: Final = 4.0
_ASKED: Final = "who is late"
_ORPHAN_S: Final = 30.0
LINGER_S: Final = 9.0
"""Seconds that the process with the board waits, when a run has failed, for all to read why."""
HEARD: Final = "heard"
"""Counts the processes that know why the run ends."""
STACKS: Final = "stacks"
"""What the log of a rank has before its stacks."""
_WAITING: Final = (
    "torch/distributed/",
    "torch/nn/parallel/",  # DDP's buffers
    "torch/autograd/graph.py",  # a backward that exchanges gradients
    "hatbus/parallel/board.py",
    "hatbus/parallel/agreed.py",
    "hatbus/parallel/together.py",
)
_NOT_SAID: Final = ("torch/", "hatbus/", "lib/python")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process is.

    Attributes:
        plugin: the innermost whose implementation runs; empty: none.
        event: which one.
        step: of the run; -1: before the first.
        at: another description, such as ``"at the end of epoch 0"``.
        line: the innermost line that is neither torch's nor hatbus's, ``file:line``.
        waits: whether it waits for the other processes.
    """

    plugin: str = ""
    event: str = ""
    step: int = -1
    at: str = ""
    line: str = ""
    waits: bool = False

    def __str__(self) -> str:
        """``in plugin 'boom', on_step_end, step 7``."""
        words = [f"plugin {self.plugin!r}"] if self.plugin else []
        words += [self.event] if self.event else []
        words += [f"step {self.step}"] if self.step >= 0 else ["the start"] * (not self.at)
        found = "in " + ", ".join(words) if words else ""
        found = f"{found} {self.at}".strip()
        return f"{found} ({self.line})" if self.line and not self.plugin else found

    def as_waiting(self) -> Place:
        """The same, of a process whose collective came to nothing."""
        return replace(self, waits=True)

    def is_behind(self, others: Iterable[Place]) -> bool:
        """Whether it is at another place than most, at the end of an epoch while they step."""
        return bool(self.at) and any(not other.at for other in others)

    def as_json(self) -> dict[str, Any]:
        """As plain data, for ``Place(**...)``."""
        return asdict(self)


class Watch:
    """What this process's thread knows.

    Attributes:
        ctx: the state of the run that is on, if one is.
        place: where the main thread was when its collective failed; None: it is still there.
        is_agents_store: whether the board is in torchrun's agent; else it is in rank 0.
        has_heard: whether the main thread knows why the run ends, and has said so.
    """

    def __init__(self) -> None:
        self.ctx: Any = None
        self.place: Place | None = None
        self.is_agents_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.has_heard = False
        self._over = threading.Event()
        self._beats = 0
        self._has_answered = False
        self._ends_at: float | None = None
        self._leaves_at = 0.0

    def here(self) -> Place:
        """Where the main thread is."""
        return self.place or place_of_main(self.ctx)

    @contextmanager
    def of(self, ctx: Any) -> Iterator[None]:
        """Watches over a run."""
        STOP_INSIDE.begin()
        self.place, self._ends_at, self._has_answered = None, None, False
        self.has_heard, self.ctx = False, ctx
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
            self._leaves_at = now + LINGER_S
        if now < self._ends_at or (now < self._leaves_at and self._is_needed(board)):
            return
        code = HookError.exit_code if is_guilty else PeerError.exit_code
        log.error("hatbus: error: [rank %d] %s", board.rank, told(report))
        with suppress(Exception):
            board.count(board.of_fit(HEARD))
        leave_at_once(code)

    def _is_needed(self, board: Board) -> bool:
        """Whether another process still has to read the board, which goes with this one."""
        if board.rank or self.is_agents_store:
            return False
        return board.count(board.of_fit(HEARD), 0) < board.world - (not self.has_heard)


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


def place_of_error(error: BaseException, ctx: Any) -> Place:
    """Where an error came out of."""
    blamed, frame = blame_of(error), None
    trace = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
    found = place_of_frame(frame, ctx) if frame is not None else Place(step=step_of(ctx))
    if blamed is not None:
        found = replace(found, plugin=blamed.plugin or "", event=blamed.event)
    return found


def place_of_main(ctx: Any) -> Place:
    """Where this process's main thread is."""
    return place_of_frame(sys._current_frames().get(threading.main_thread().ident or 0), ctx)  # noqa: SLF001 - documented


def place_of_frame(frame: FrameType | None, ctx: Any) -> Place:
    """Where a stack is."""
    lines = ctx.bus.callers if ctx is not None else {}
    plugin, event, line, waits = "", "", "", None
    while frame is not None:
        file = frame.f_code.co_filename
        if waits is None:
            waits = any(part in file for part in _WAITING)
        if not plugin and file in lines:
            name = lines[file][frame.f_lineno]
            if name and not is_core(name):
                plugin, event = name, frame.f_code.co_name
        if not line and not file.startswith("<") and not any(part in file for part in _NOT_SAID):
            line = f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    at = getattr(getattr(ctx, "control", None), "at", "")
    return Place(plugin, event, step_of(ctx), at, line, bool(waits))


def step_of(ctx: Any) -> int:
    """The present step; -1 before the first."""
    position = getattr(ctx, "position", None)
    if position is None:
        return -1
    return int(getattr(ctx, "global_step_id", 0)) if position.global_step else -1


def all_stacks() -> str:
    """The Python stacks of all threads of this process, the main one first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001 - documented
    main = threading.main_thread().ident
    order = sorted(frames, key=lambda ident: ident != main)
    parts = [
        f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frames[ident]))
        for ident in order
    ]
    return "\n".join(parts)
