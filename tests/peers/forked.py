"""A run in a process of its own, which may be killed, and what was found of it."""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LONGEST = 120.0


class Counter:
    """A number that a process and its child share."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return struct.unpack("q", self._page[:8])[0]

    @value.setter
    def value(self, number: int) -> None:
        self._page[:8] = struct.pack("q", number)


@dataclass
class Ended:
    """How a run ended.

    Attributes:
        found: what it returned; empty if it did not.
        error: the exception, if it was one.
        signal: that ended it, or 0.
    """

    found: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    signal: int = 0


def forked(
    run: Callable[[], dict[str, Any]], place: Path, kill: Callable[[int], None] | None = None
) -> Ended:
    """Runs something in a forked process.

    Args:
        run: gives what JSON can hold.
        place: a folder for its answer.
        kill: is given the process's number, and may kill it; the process is killed anyhow when it
            takes longer than two minutes.
    """
    place.mkdir(parents=True, exist_ok=True)
    answer = place / f"answer-{time.monotonic_ns()}.json"
    child = os.fork()
    if child == 0:
        _in_child(run, answer)
    try:
        if kill is not None:
            kill(child)
        status = _status(child)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    told = json.loads(answer.read_text("utf-8")) if answer.exists() else {}
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return Ended(told.get("found", {}), told.get("error", ""), number)


def _in_child(run: Callable[[], dict[str, Any]], answer: Path) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if "PEERS_SHOW" not in os.environ:
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        try:
            told: dict[str, Any] = {"found": run()}
        except BaseException as error:
            traceback.print_exc()
            notes = " ".join(getattr(error, "__notes__", []))
            told = {"error": f"{type(error).__name__}: {error} {notes}".strip()}
        answer.write_text(json.dumps(told), "utf-8")
    finally:
        os._exit(0)


def _status(child: int) -> int:
    ends = time.monotonic() + LONGEST
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def is_alive(child: int) -> bool:
    """Whether a process is still running (its status is left for whoever waits for it)."""
    stat = Path(f"/proc/{child}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def listing(folder: Path) -> dict[str, int]:
    """Every file below a folder with its size."""
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                found[f"{path}/{name}"] = os.lstat(f"{path}/{name}").st_size
            except OSError:
                continue
    return found
