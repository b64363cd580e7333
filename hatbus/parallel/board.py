"""A board on which the processes of a run leave notes for each other, beside their collectives.

It is torch's store: notes are read and written without the other processes' help, so one that has
failed can still say so, and one that waits for a collective can ask why.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import PeerError
from hatbus.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

_SHORTEST, _LONGEST = 0.005, 0.2
_TELL_AFTER: Final = 20.0
BEAT_S: Final = 2.0
"""Seconds between two signs of life of a process."""
START_TIMEOUT: Final = 1800.0
"""Seconds that processes wait for each other before the first step, if nobody says otherwise."""


class Board:
    """The notes of one start of the processes.

    Args:
        store: torch's, with a prefix that no other start has.
        rank: of this process.
        world: how many there are.

    Attributes:
        patience: seconds that a process waits for a note.
        lasting: a store that the next start of the processes finds too, where torchrun restarts.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.patience, self.lasting = START_TIMEOUT, store
        self._fits = [0]
        self._numbers: dict[str, int] = {}

    def beside(self) -> Board:
        """The same board for another thread, which does not wait while this one does."""
        clone = getattr(self.store, "clone", None)
        found = Board(self.store if clone is None else clone(), self.rank, self.world)
        found._fits = self._fits
        return found

    def turn(self) -> None:
        """A fit is over: a failure in it is not one of the next."""
        self._fits[0] += 1

    def next(self, what: str) -> int:
        """How often this process asked that before; notes that come again are numbered."""
        self._numbers[what] = self._numbers.get(what, -1) + 1
        return self._numbers[what]

    def of_fit(self, key: str) -> str:
        """The key of a note that concerns this fit alone."""
        return f"{key} {self._fits[0]}"

    def put(self, key: str, text: str) -> None:
        """Leaves a note."""
        self.store.set(key, text)

    def look(self, key: str) -> str | None:
        """A note, if it is there."""
        return self.store.get(key).decode() if self.store.check([key]) else None

    def count(self, key: str, more: int = 1) -> int:
        """Adds to a number that all share, and gives the sum."""
        return int(self.store.add(key, more))

    def wait(self, key: str, whose: str) -> str:
        """A note, once it is there.

        Args:
            key: of the note.
            whose: who is to leave it, for messages: ``"rank 0"``.

        Raises:
            PeerError: another process has failed meanwhile, or it does not come in time.
        """
        found: list[str] = []

        def came() -> bool:
            note = self.look(key)
            found.extend(() if note is None else [note])
            return note is not None

        patiently(came, self, lambda: whose)
        return found[0]

    def first_failure(self, text: str) -> str:
        """Reports a failure; the first report of all processes, which may be this one."""
        return bytes(self.store.compare_set(self.of_fit("failed"), "", text)).decode()

    def failure(self) -> str | None:
        """The first report of a failure, if there is one."""
        return self.look(self.of_fit("failed"))


def patiently(came: Callable[[], bool], board: Board, missing: Callable[[], str]) -> None:
    """Waits until something has come.

    Raises:
        PeerError: another process has failed meanwhile, or it does not come in time.
    """
    began, pause, is_told = time.monotonic(), _SHORTEST, False
    while not came():
        report = board.failure()
        if report is not None:
            raise PeerError(told(report))
        waited = time.monotonic() - began
        if waited > board.patience:
            raise PeerError(
                f"{missing()} did not come within {board.patience:g} s; all of {board.world} "
                "processes have to be started (start_timeout sets the limit)"
            )
        if waited > _TELL_AFTER and not is_told:
            is_told = True
            log.warning("waiting for %s of %d processes", missing(), board.world)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)


def told(report: str) -> str:
    """A report of a failure, in words."""
    found = json.loads(report)
    return f"rank {found['rank']} {found['what']}" + (f": {found['why']}" if found["why"] else "")


def named(ranks: set[int]) -> str:
    """Some ranks, for messages."""
    shown = ", ".join(map(str, sorted(ranks)[:8]))
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' * (len(ranks) > 1)} {shown}{more}"


def beats_of(board: Board) -> dict[int, str | None]:
    """The last sign of life of every process."""
    return {rank: board.look(f"beat {rank}") for rank in range(board.world)}


def gone(board: Board) -> dict[int, dict[str, Any]]:
    """Whose signs of life have stopped, and where each was last; takes some seconds."""
    before = beats_of(board)
    time.sleep(3 * BEAT_S)
    after = beats_of(board)
    others = set(range(board.world)) - {board.rank}
    still = {rank for rank in others if after[rank] is not None and before[rank] == after[rank]}
    return {rank: json.loads(after[rank] or "{}") for rank in sorted(still)}
