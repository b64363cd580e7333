"""A process that holds one peer, and does what it is told, line by line.

``python tests/peers/worker.py NAME`` reads requests as JSON, a line each, and answers so. What the
peer prints goes to the standard error; nothing of one peer's imports is in another's process. In a
job that is done in turns it says so whenever its turn is over, and waits for a line to go on.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers.work import Work

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
TURN: Final = 0.1
"""Seconds of work after which it is another peer's turn."""


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints is no answer
    import torch

    from peers import measures, promises
    from peers.work import Job

    torch.set_num_threads(1)
    train = importlib.import_module(f"peers.of_{name}").train
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "promise" in request:
                answer["found"] = promises.TRIALS[request["promise"]](
                    train, name, **request["with"]
                )
            elif request.get("check"):
                by_hand = importlib.import_module("peers.of_hand").train
                answer["found"] = measures.checked(train, by_hand, name)
            else:
                job, way = Job(**request["job"]), train
                if request.get("in turns"):
                    way = in_turns(train, answers)
                answer["found"] = measures.once(way, job, request["read"])
        except Exception as error:
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers)


def in_turns(train: Callable[[Work], None], answers: TextIO) -> Callable[[Work], None]:
    """Trains so, and lets the other peers have their turns in between."""
    until = 0.0

    def pause() -> None:
        nonlocal until
        if time.process_time() >= until:
            print(json.dumps({"turn": "over"}), file=answers)
            sys.stdin.readline()
            until = time.process_time() + TURN

    def taking_turns(work: Work) -> None:
        work.pause = pause
        train(work)

    return taking_turns


if __name__ == "__main__":
    main(sys.argv[1])
