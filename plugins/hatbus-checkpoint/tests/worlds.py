"""Runs of several processes, all forked from one that has imported everything.

As a program: ``worlds.py FOLDER CASE...`` does one case of ``sharded_cases.py`` after the other.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Work = Callable[[int], Any]


def world(size: int, work: Work, seconds: float = 60.0) -> list[int]:
    """Does the work in so many processes; their exit codes, or the signal, negative, of each."""
    return ended(started(size, work), seconds)


def started(size: int, work: Work) -> list[int]:
    """Begins the work in so many processes; their ids."""
    port = free_port()
    return [_fork(rank, size, port, work) for rank in range(size)]


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _fork(rank: int, size: int, port: str, work: Work) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank)}
        os.environ["WORLD_SIZE"] = str(size)
        torch.set_num_threads(1)
        work(rank)
        code = 0
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        traceback.print_exc(file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(children: list[int], seconds: float = 60.0) -> list[int]:
    """Waits for processes; their exit codes, 1000 for one that did not end in time."""
    until = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < len(children) and time.monotonic() < until:
        for child in (one for one in children if one not in codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    for child in (one for one in children if one not in codes):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        codes[child] = 1000  # it hung
    return [codes[child] for child in children]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import sharded_cases

    sharded_cases.main(Path(sys.argv[1]), sys.argv[2:])
