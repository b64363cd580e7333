"""Notes that processes leave for each other; here threads, over a store in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed import HashStore

from hatbus.errors import JobError, PeerError
from hatbus.parallel import failures
from hatbus.parallel.alike import check_alike
from hatbus.parallel.board import Board
from hatbus.parallel.meeting import _meet
from hatbus.parallel.stopping import StopInside
from hatbus.parallel.watch import Place


def boards(world: int) -> list[Board]:
    store = HashStore()
    found = [Board(store, rank, world) for rank in range(world)]
    for board in found:
        board.patience = 20.0
    return found


def on_all(found: list[Board], work: Callable[[Board], Any]) -> list[Any]:
    """What every rank gets, or its error."""
    results: list[Any] = [None] * len(found)

    def one(board: Board) -> None:
        try:
            results[board.rank] = work(board)
        except Exception as error:
            results[board.rank] = error

    threads = [threading.Thread(target=one, args=(board,)) for board in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_processes_that_agree_go_on() -> None:
    assert on_all(boards(3), lambda b: check_alike({"seed": 1, "plugins": ["a"]}, b)) == [None] * 3


def test_every_process_is_told_who_differs_and_in_what() -> None:
    def work(board: Board) -> None:
        check_alike({"seed": board.rank // 2, "only": 1, "same": "x"}, board)

    found = on_all(boards(3), work)
    assert [type(error) for error in found] == [JobError] * 3
    line = "the processes are not alike: seed is 1 on rank 2 and 0 on rank 0; "
    line += "start all with the same job, code and data"
    assert {str(error) for error in found} == {line}


def test_what_one_process_has_not_is_missing_there() -> None:
    facts = ({"a": 1, "b": 2}, {"a": 1})
    found = on_all(boards(2), lambda board: check_alike(facts[board.rank], board))
    assert "b is missing on rank 1 and 2 on rank 0" in str(found[0])


def test_who_waits_is_told_of_a_failure_at_once() -> None:
    first, second = boards(2)
    second.first_failure(json.dumps({"rank": 1, "what": "failed in step 3", "why": "a bug"}))
    with pytest.raises(PeerError, match="rank 1 failed in step 3: a bug"):
        first.wait("never", "rank 1")
    first.turn()
    second.turn()
    first.patience = 0.1
    with pytest.raises(PeerError, match="rank 1 did not come within"):
        first.wait("never", "rank 1")


def test_each_start_of_the_processes_has_a_board_of_its_own() -> None:
    store = HashStore()
    seen = []
    for _ in range(3):  # the store of torchrun's agent outlives the processes
        start = [Board(store, rank, 3) for rank in range(3)]
        met = on_all(start, _meet)
        assert all(isinstance(board, Board) for board in met), met
        met[0].put("who", "first")
        assert met[2].look("who") == "first"
        seen.append(met[1].look("left"))
        met[2].put("left", "something")
        met[0].lasting.set("lasts", "on")
    assert seen == [None] * 3
    assert met[1].lasting.get("lasts") == b"on"


def test_unlike_numbers_of_processes_are_refused() -> None:
    store = HashStore()
    found = on_all([Board(store, 0, 2), Board(store, 1, 3)], _meet)
    assert "rank 1 was started as one of 3 processes (WORLD_SIZE), rank 0 of 2" in str(found[0])
    assert str(found[1]) == str(found[0])


def test_all_leave_a_validation_at_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = boards(3)
    each = [StopInside() for _ in found]
    ahead = (3, 9, 5)

    def work(board: Board) -> int:
        mine = each[board.rank]
        mine.board = board
        for step in range(ahead[board.rank]):
            assert not mine.is_here(step)
        came.wait()
        if board.rank == 0:
            monkeypatch.setattr("hatbus.parallel.stopping.stop_wanted", lambda: True)
        while mine._limit is None:
            mine.answer(board)
        return next(step for step in range(ahead[board.rank], 100) if mine.is_here(step))

    came = threading.Barrier(3)
    assert on_all(found, work) == [9, 9, 9]


def test_places_in_words() -> None:
    assert str(Place("boom", "on_step_end", 7)) == "in plugin 'boom', on_step_end, step 7"
    assert str(Place(step=7, line="train.py:3")) == "in step 7 (train.py:3)"
    assert str(Place(at="at the end of epoch 0")) == "at the end of epoch 0"
    assert str(Place()) == "in the start"


def test_only_what_comes_of_collectives_may_be_anothers_fault() -> None:
    gloo = RuntimeError("[../third_party/gloo/pair.cc:553] Connection closed by peer [::1]:5")
    assert failures.is_of_collective(gloo)
    assert not failures.is_of_collective(RuntimeError("shapes differ"))
    assert not failures.is_of_collective(ValueError("gloo"))
