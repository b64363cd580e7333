"""Where the processes of a run meet: each start of them gets a board of its own.

The store may outlive the processes, as torchrun's does when it starts them again. So rank 0 makes a
token at every start, and gives it to whoever says hello; a hello of an earlier start has nobody
behind it who would take a seat.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import timedelta
from functools import cache
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore

from hatbus.errors import JobError, PeerError
from hatbus.parallel.board import START_TIMEOUT, Board, named, patiently
from hatbus.parallel.launch import leave_with_agent, rank_and_world
from hatbus.parallel.watch import WATCH


@cache
def board_of_all() -> Board:
    """The board of this start of the processes; all have to ask for it once.

    Raises:
        JobError: the processes do not belong together.
        PeerError: one does not come.
    """
    rank, world = rank_and_world()
    try:
        store = _store(rank)
    except (RuntimeError, ValueError) as error:
        raise _no_store(error, rank) from error
    board = _meet(Board(store, rank, world))
    WATCH.start(board)
    leave_with_agent()
    return board


def board_if_met() -> Board | None:
    """The board, where the processes have met."""
    return board_of_all() if board_of_all.cache_info().currsize else None


def _store(rank: int) -> Any:
    if distributed.is_initialized():
        return PrefixStore("hatbus", distributed.distributed_c10d._get_default_store())  # noqa: SLF001 - torch has no public name for it
    address = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")]
    if not all(address):
        raise JobError(
            "WORLD_SIZE is set, and MASTER_ADDR or MASTER_PORT is not: start the processes by "
            "torchrun or srun, which set all"
        )
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        address[0],
        int(address[1]),
        is_master=rank == 0 and not is_agents,
        timeout=timedelta(seconds=START_TIMEOUT),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore("hatbus", store)


def _no_store(error: Exception, rank: int) -> JobError | PeerError:
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    said = str(error).partition("\n")[0]
    if rank == 0:
        return JobError(
            f"rank 0 cannot listen at {place}, where the processes are to meet ({said:.200}); "
            "another run may be there, or another process with RANK=0: choose another MASTER_PORT"
        )
    return PeerError(f"nobody answers at {place}, where rank 0 should be ({said:.200})")


def _meet(board: Board) -> Board:
    """Gives all processes of this start one token, and nobody of another start."""
    mine = uuid.uuid4().hex
    token = mine if board.rank == 0 else _greet(board, mine)
    own = Board(PrefixStore(token, board.store), board.rank, board.world)
    own.lasting = PrefixStore("lasting", board.store)
    own.count(f"seat {board.rank}")
    if board.rank == 0:
        _welcome(board, own, token)
    if own.count(f"seat {board.rank}", 0) > 1:
        _refuse(own, f"two processes have RANK={board.rank}; start each with a rank of its own")
    return own


def _greet(board: Board, mine: str) -> str:
    board.put(f"hello {board.rank}", json.dumps([mine, board.world]))
    answer = json.loads(board.wait(f"welcome {mine}", "rank 0"))
    if "error" in answer:
        raise JobError(answer["error"])
    token: str = answer["token"]
    return token


def _welcome(board: Board, own: Board, token: str) -> None:
    """Answers every hello, until all have taken their seats."""
    known: dict[int, str] = {}
    missing = set(range(1, board.world))

    def all_came() -> bool:
        for rank in sorted(missing):
            hello = board.look(f"hello {rank}")
            if hello is not None and known.get(rank) != hello:
                known[rank] = hello
                _answer(board, own, rank, hello, token)
            if hello is not None and own.count(f"seat {rank}", 0):
                missing.discard(rank)
        return not missing

    patiently(all_came, own, lambda: named(missing))


def _answer(board: Board, own: Board, rank: int, hello: str, token: str) -> None:
    mine, world = json.loads(hello)
    text = f"rank {rank} was started as one of {world} processes (WORLD_SIZE), rank 0 of"
    error = "" if world == board.world else f"{text} {board.world}; start all alike"
    answer = {"error": error} if error else {"token": token}
    board.put(f"welcome {mine}", json.dumps(answer))
    if error:
        _refuse(own, error)


def _refuse(board: Board, text: str) -> None:
    board.first_failure(json.dumps({"rank": board.rank, "what": f"refuses: {text}", "why": ""}))
    raise JobError(text)


def said_by_first(text: str) -> str:
    """What the first process says, for all; each asks once."""
    board = board_of_all()
    key = f"said {board.next('said')}"
    if board.rank == 0:
        board.put(key, text)
        return text
    return board.wait(key, "rank 0")
