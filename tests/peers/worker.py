"""A process that holds one peer, and does what it is told, line by line.

``python tests/peers/worker.py NAME`` reads requests as JSON, a line each, and answers so. What the
peer prints goes to the standard error; nothing of one peer's imports is in another's process.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


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
                job = Job(**request["job"])
                answer["found"] = measures.once(train, job, request["read"])
        except Exception as error:
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
