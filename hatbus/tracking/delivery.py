"""The thread that delivers: from the journal to the service, again and again until it arrives."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError
from hatbus.log import log
from hatbus.option_values import short
from hatbus.tracking.pictures import histogram, png
from hatbus.tracking.reading import numbers
from hatbus.tracking.secret import redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatbus.tracking.journal import Journal, Piece
    from hatbus.tracking.service import Described, Service

PAUSE: Final = 1.0
"""Seconds between two looks."""
AGAIN: Final = (5.0, 300.0)
"""Seconds until it is tried again after a failure: at first, doubled each time, and at most."""
AT_START: Final = 20.0
"""Seconds that the service has to answer before training begins without it."""


class Delivery:
    """Takes what is published, writes it into the journal, and delivers what is whole.

    Args:
        who: the plugin's instance, for messages.
        service: where to; only the thread calls it.
        journal: of the run.
        described: the run.
        step: tells the present ``global_step_id``; what was published before it is whole.
        live: deliver at once, not only up to the last checkpoint.
    """

    def __init__(
        self,
        who: str,
        service: Service,
        journal: Journal,
        described: Described,
        step: Callable[[], float],
        *,
        live: bool = True,
    ) -> None:
        self._who, self._service, self._journal = who, service, journal
        self._described, self._step = described, step
        self._limit = math.inf if live else 0.0
        self._pending: deque[tuple[Piece, str]] = deque()
        self._writing, self._wake = threading.Lock(), threading.Event()
        self._opened, self._asked = threading.Event(), threading.Event()
        self._how: str | None = None
        self._refusal: JobError | None = None
        self._is_open = self._is_warned = self._is_full = self._is_odd = False
        self._next_try, self._pause, self._until = 0.0, AGAIN[0], math.inf
        self._count = 0
        self._thread = threading.Thread(target=self._run, name=who, daemon=True)

    def start(self, seconds: float = AT_START) -> None:
        """Opens the run at the service; where that does not answer, training begins without.

        Args:
            seconds: that it has for that.

        Raises:
            JobError: the service says that something is wrong with the job, such as the login.
        """
        self._thread.start()
        if not self._asked.wait(seconds):
            self._warn(f"no answer within {seconds:g} s")
        elif self._refusal is not None:
            self._how = "failed"
            self._thread.join()
            raise self._refusal
        elif self._is_open:
            where = self._service.where()
            if where:
                log.info("%s: %s", self._who, redacted(where))

    def put(self, piece: Piece, kind: str) -> None:
        """Takes a piece; tensors in it are read later, by the thread."""
        self._pending.append((piece, kind))

    def flush(self) -> int:
        """Writes everything that was taken into the journal.

        Returns:
            How many pieces are in it.
        """
        with self._writing:
            self._write()
            self._journal.settle()
            return self._journal.pieces

    def commit(self, count: int) -> None:
        """So many pieces are behind a checkpoint: no later run will publish them again."""
        if self._limit < math.inf:
            self._limit = count

    def close(self, how: str, seconds: float) -> None:
        """Delivers the rest and ends the run at the service, as far as that goes in the time.

        Args:
            how: ``"finished"``, ``"stopped"`` or ``"failed"``.
            seconds: how long it may take.
        """
        self.flush()
        self._how, self._until = how, time.monotonic() + seconds
        self._limit = math.inf
        self._wake.set()
        self._thread.join(seconds)
        left = self._journal.pieces - self._journal.done
        if left:
            log.warning(
                "%s: %d points have not been delivered; they are kept in %r: hatbus deliver RUN "
                "delivers them, and so does the run when it goes on",
                self._who,
                left,
                str(short(self._journal.folder)),
            )

    def _run(self) -> None:
        while self._how is None:
            self._look()
            self._asked.set()
            if self._refusal is not None:
                return
            self._wake.wait(PAUSE)
        self._next_try = 0.0
        while self._left() and time.monotonic() < self._until and self._look():
            pass
        if self._is_open:
            try:
                self._service.close(self._how, max(1.0, self._until - time.monotonic()))
            except Exception as error:  # noqa: BLE001 - whatever the vendor's client raises
                self._failed(error)

    def _left(self) -> bool:
        return self._journal.done < self._journal.pieces or not self._is_open

    def _look(self) -> bool:
        """Writes and delivers once.

        Returns:
            Whether it went well.
        """
        before = self._step() if self._how is None else math.inf
        with self._writing:
            self._write()
        if time.monotonic() < self._next_try:
            return False
        try:
            if not self._is_open:
                self._open()
            while self._deliver(before):
                pass
        except Exception as error:  # noqa: BLE001 - whatever the vendor's client raises
            if isinstance(error, JobError) and not self._asked.is_set():
                self._refusal = error
            else:
                self._failed(error)
            return False
        if self._is_warned:
            self._is_warned = False
            log.info("%s: the service takes points again", self._who)
        self._pause = AGAIN[0]
        return True

    def _open(self) -> None:
        last = self._service.open(self._described)
        if last is not None:
            with self._writing:
                self._journal.arrived(last)
        self._is_open = True

    def _deliver(self, before: float) -> bool:
        with self._writing:
            limit = int(min(self._limit, self._journal.pieces))
            rows, count, place = self._journal.unsent(before, limit)
            if not rows:
                return False
            self._journal.begin_sending(count, max(row.step for row in rows))
        self._service.send(rows)
        with self._writing:
            self._journal.has_sent(count, place)
        return True

    def _failed(self, error: Exception) -> None:
        if not self._is_warned:
            said = redacted(f"{type(error).__name__}: {error}").strip().partition("\n")[0]
            self._warn(said[:300])
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, AGAIN[1])

    def _warn(self, why: str) -> None:
        self._is_warned = True
        log.warning(
            "%s: the service does not take points (%s); the training goes on, they are kept in %r "
            "and delivered when it does",
            self._who,
            why,
            str(short(self._journal.folder)),
        )

    def _write(self) -> None:
        """Writes what was taken; what cannot be written now stays, and is tried again."""
        taken = [self._pending.popleft() for _ in range(len(self._pending))]
        if not taken:
            return
        try:
            self._journal.append(self._placed([self._plain(*one) for one in taken]))
            self._is_full = False
        except OSError as error:
            self._pending.extendleft(reversed(taken))
            if not self._is_full:
                self._is_full = True
                log.warning("%s: cannot write points: %s; they wait", self._who, error)

    def _placed(self, pieces: list[Piece]) -> list[Piece]:
        """Steps that a service in order no longer takes become its next one."""
        if self._service.is_ordered:
            first = self._journal.top + 1
            for piece in pieces:
                piece["step"] = max(piece["step"], first)
        return pieces

    def _plain(self, piece: Piece, kind: str) -> Piece:
        """A piece without tensors."""
        values: dict[str, Any] = piece["values"]
        if kind == "scalar":
            values = dict(zip(values, numbers(values.values()), strict=True))
        elif kind in ("histogram", "image"):
            make = histogram if kind == "histogram" else self._picture
            values = {name: made for name, one in values.items() if (made := self._made(make, one))}
        return {**piece, "kind": kind, "values": values}

    def _made(self, make: Callable[[Any], Any], value: Any) -> Any:
        """What is delivered for a tensor; None, and a warning once, for one that has no such."""
        try:
            return make(value)
        except (ValueError, TypeError, AttributeError) as error:
            if not self._is_odd:
                self._is_odd = True
                log.warning("%s leaves something out: %s", self._who, error)
            return None

    def _picture(self, image: Any) -> str:
        return self._kept(png(image))

    def _kept(self, data: bytes) -> str:
        """The name of a file in the journal's folder that holds the data."""
        folder = self._journal.folder / "media"
        folder.mkdir(exist_ok=True)
        self._count += 1
        name = f"{time.time_ns()}-{self._count}.png"
        (folder / name).write_bytes(data)
        return f"media/{name}"
