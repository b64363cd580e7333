"""What a process says of a failure to the others, and what it makes of theirs.

An error of a collective says only that somebody has gone or is late. Who it was, and in which
plugin, stands on the board: every process that fails leaves a note there before it goes.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.blame import blame_of
from hatbus.errors import DataError, HatbusError, PeerError
from hatbus.parallel.board import gone, named, told
from hatbus.parallel.meeting import board_if_met
from hatbus.parallel.watch import HEARD, LINGER_S, WATCH, Place, answers_of, place_of_error

if TYPE_CHECKING:
    from hatbus.parallel.board import Board

_SAID: Final = "__hatbus_said__"
_OF_COLLECTIVES: Final = re.compile(
    r"gloo|nccl|ProcessGroup|TCPStore|Connection (closed|reset|refused)|Broken pipe"
    r"|Timed out|timed? ?out waiting|Socket Timeout|recvBytes|sendBytes|Connection was likely",
    re.IGNORECASE,
)
_LATE: Final = re.compile(r"timed? ?out|timeout", re.IGNORECASE)
_REPORT_S: Final = 3.0
_SHORT: Final = 300
_ALONE: Final = "waits alone"
_AT_AN_END: Final = "at the end of epoch"


def as_peers_see(error: BaseException, ctx: Any = None) -> BaseException:
    """The error to raise: a ``PeerError`` where another process is guilty of it.

    Where this one is, the others are told. Asked again for the same error, it answers the same.

    Args:
        error: what is ending the run here.
        ctx: the state of the run.
    """
    said: BaseException | None = getattr(error, _SAID, None)
    if said is not None:
        return said
    board = None
    with suppress(Exception):
        board = board_if_met()
    if board is None or board.world == 1:
        return error
    found: BaseException = error
    if isinstance(error, PeerError):
        pass
    elif is_of_collective(error):
        found = _of_peer(error, board, ctx)
    else:
        found = _own(error, board, ctx)
    for one in {id(error): error, id(found): found}.values():
        with suppress(AttributeError):
            setattr(one, _SAID, found)
    if found is not error:
        found.__cause__ = error
    _heard(board)
    return found


@contextmanager
def peers_told(ctx: Any = None) -> Iterator[None]:
    """What fails in here is told to the other processes; what they tell is raised in its place.

    Raises:
        PeerError: another process is guilty of the error.
    """
    try:
        yield
    except BaseException as error:
        found = as_peers_see(error, ctx)
        if found is error:
            raise
        raise found from error


def is_of_collective(error: BaseException) -> bool:
    """Whether it is a collective that failed: then another process may be guilty."""
    kind = sys.modules.get("torch.distributed")
    kinds = getattr(kind, "DistError", ())
    is_torchs = isinstance(error, (RuntimeError, *([kinds] if kinds else [])))
    if not is_torchs or isinstance(error, HatbusError):
        return False
    return bool(_OF_COLLECTIVES.search(str(error)))


def _heard(board: Board) -> None:
    """Says that this process knows why the run ends; rank 0, which holds the board, waits for all.

    Torchrun's agent holds it longer than any of them lives.
    """
    with suppress(Exception):
        key, until = board.of_fit(HEARD), time.monotonic() + LINGER_S
        board.count(key)
        WATCH.has_heard = True
        while board.rank == 0 and not WATCH.is_agents_store and time.monotonic() < until:
            if board.count(key, 0) >= board.world:
                break
            time.sleep(0.05)


def _own(error: BaseException, board: Board, ctx: Any) -> BaseException:
    """Tells the others; unless one was first, whose failure is then the run's."""
    with suppress(Exception):  # who holds the board may have gone; the error is what counts
        board.first_failure(json.dumps(report_of(error, board.rank, ctx)))
    return error


def report_of(error: BaseException, rank: int, ctx: Any) -> dict[str, Any]:
    """What the others are told of an error."""
    place = place_of_error(error, ctx)
    said = " ".join(str(error).split())[:_SHORT]
    if isinstance(error, SystemExit):
        return {"rank": rank, "what": f"left {place}", "why": f"exit code {error.code}"}
    if isinstance(error, KeyboardInterrupt):
        return {"rank": rank, "what": f"was interrupted {place}", "why": ""}
    blamed = blame_of(error)
    is_users = isinstance(error, HatbusError) and (blamed is None or blamed.plugin is None)
    why = said if is_users else f"{type(error).__name__}: {said}"
    return {"rank": rank, "what": f"failed {place}", "why": why}


def _of_peer(error: BaseException, board: Board, ctx: Any) -> BaseException:
    """What a failed collective means: another's report, or who is late, or who has gone."""
    here = place_of_error(error, ctx)
    WATCH.place = here.as_waiting()  # from now on too, for others who ask
    try:
        is_late = bool(_LATE.search(str(error)))
        report = _report(board, _REPORT_S / 3 if is_late else _REPORT_S)
        if report is None and is_late:
            report = _late(error, board, here)
        if report is None:
            report = _gone(board)
        if report is None:
            return PeerError(f"rank {board.rank} lost the others {here}: {_first_line(error)}")
        report = json.loads(board.first_failure(json.dumps(report)))
    except Exception:  # noqa: BLE001 - the board has gone, with whom
        holder = "torchrun's agent" if WATCH.is_agents_store else "rank 0, which keeps the board"
        return PeerError(f"{holder}, has gone; rank {board.rank} was {here}")
    if report["rank"] == board.rank:
        return _blamed(error, report)
    return PeerError(told(json.dumps(report)))


def _blamed(error: BaseException, report: dict[str, Any]) -> BaseException:
    """What this process raises when the others found that it kept them waiting."""
    if report["what"].startswith(_ALONE) and _AT_AN_END in report["what"]:
        return DataError(
            f"rank {report['rank']} {report['what']}, and {report['why']}: its loader gives fewer "
            "batches; give every rank equally many (hatbus.data.loader does)"
        )
    error.add_note(f"rank {report['rank']} {report['what']} {report['why']}")
    return error


def _report(board: Board, seconds: float) -> dict[str, Any] | None:
    """A report that is there, or comes soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        text = board.failure()
        if text is not None:
            found: dict[str, Any] = json.loads(text)
            return found
        time.sleep(0.05)
    return None


def _late(error: BaseException, board: Board, here: Place) -> dict[str, Any]:
    """Asks all where they are; who does not wait for the others is the guilty one."""
    answers = answers_of(board, here.as_waiting(), _first_line(error))
    silent = {rank for rank, answer in answers.items() if answer is None}
    if silent:
        what = "has gone, or holds its interpreter" if len(silent) == 1 else "have gone"
        return {"rank": min(silent), "what": what, "why": _ranks(silent)}
    places = {rank: Place(**json.loads(answer or "{}")) for rank, answer in answers.items()}
    guilty = [rank for rank, place in places.items() if not place.waits]
    if not guilty:  # all wait, but not for the same: who does so in a plugin is alone with it
        guilty = [rank for rank, place in places.items() if place.plugin]
    if not 0 < len(guilty) < board.world:
        guilty = [rank for rank, place in places.items() if place.is_behind(places.values())]
    rank = guilty[0] if guilty else min(set(places) - {board.rank})
    others = next((f"rank {r} waits {p}" for r, p in places.items() if r != rank), "")
    verb = _ALONE if places[rank].waits else "hangs"
    return {"rank": rank, "what": f"{verb} {places[rank]}", "why": others}


def _gone(board: Board) -> dict[str, Any] | None:
    """Whose signs of life have stopped: it was killed, or has crashed."""
    found = gone(board)
    if not found:
        return None
    rank, note = next(iter(found.items()))
    what = f"has gone (killed, or crashed), last seen {Place(**note.get('place', {}))}"
    return {"rank": rank, "what": what, "why": _ranks(set(found))}


def _ranks(ranks: set[int]) -> str:
    return named(ranks) if len(ranks) > 1 else ""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:_SHORT]
