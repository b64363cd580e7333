"""A disk that dies, fills up, fails or loses power at a chosen call.

``FaultyOs`` stands in for the module ``os`` in the code under test. Every call that changes the
disk is counted and written down, so that a test can stop at each, and can rebuild what a power
loss might leave.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir", "link")


class Killed(BaseException):
    """The process is gone: nothing after this reaches the disk."""


class FaultyOs:
    """``os``, with one fault at call number ``at``: "kill", "short", "ENOSPC" or "EIO"."""

    def __init__(self, at: int = -1, fault: str = "") -> None:
        self.at, self.fault = at, fault
        self.count = 0
        self.dead = False
        self.log: list[tuple[Any, ...]] = []
        self.hit = ""
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            return getattr(os, name)
        return lambda *arguments: self._call(name, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        if self.dead:
            if name == "close":
                os.close(*arguments)  # the kernel closes the files of a dead process
            raise Killed
        number, self.count = self.count, self.count + 1
        if number == self.at:
            self.hit = name
            if self.fault == "kill":
                self.dead = True
                if name == "write":
                    os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                if name == "close":
                    os.close(*arguments)
                raise Killed
            if self.fault == "short" and name == "write" and len(arguments[1]) > 1:
                arguments = (arguments[0], arguments[1][: len(arguments[1]) // 2])
            elif self.fault in ("ENOSPC", "EIO"):
                if name == "close":
                    os.close(*arguments)
                raise OSError(getattr(errno, self.fault), os.strerror(getattr(errno, self.fault)))
        result = None if name == "fsync" else getattr(os, name)(*arguments)
        self._note(name, arguments, result)
        return result

    def _note(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            self._paths[result] = os.fspath(arguments[0])
            if arguments[1] & os.O_CREAT:
                self.log.append(("create", self._paths[result]))
        elif name == "write":
            self.log.append(("write", self._paths[arguments[0]], bytes(arguments[1][:result])))
        elif name == "fsync":
            self.log.append(("fsync", self._paths[arguments[0]]))
        elif name != "close":
            both = name in ("rename", "link")
            self.log.append((name, *map(os.fspath, arguments[: 2 if both else 1])))


class Ghost:
    """A model of a file system under power loss.

    Data of a file and names of a folder are durable after their fsync; before it they may or may
    not be. ``states`` gives, for a log of calls, trees that a power loss at its end may leave:
    nothing that is not synced; all of it; all names but only synced data; all data but only synced
    names; and every prefix of the unsynced name changes with no unsynced data.
    """

    def __init__(self) -> None:
        self.data: dict[int, bytes] = {}
        self.synced: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.pending: list[tuple[str, dict[str, int]]] = []
        self.durable: dict[str, int] = {}
        self._next = 1

    def play(self, entry: tuple[Any, ...]) -> None:
        kind, path = entry[0], entry[1]
        if kind in ("create", "mkdir"):
            self.names[path] = self._next
            self.data[self._next] = b"" if kind == "create" else b"<folder>"
            self.synced[self._next] = self.data[self._next]
            self._next += 1
            self._changed(path)
        elif kind == "write":
            self.data[self.names[path]] += entry[2]
        elif kind == "fsync":
            node = self.names.get(path)
            if node is not None and self.data[node] != b"<folder>":
                self.synced[node] = self.data[node]
            else:
                self._sync_folder(path)
        elif kind == "link":
            self.names[entry[2]] = self.names[path]
            self._changed(entry[2])
        elif kind == "rename":
            moved = {p: n for p, n in self.names.items() if p == path or p.startswith(path + "/")}
            for old, node in moved.items():
                del self.names[old]
                self.names[entry[2] + old[len(path) :]] = node
            self._changed(path)
        else:
            del self.names[path]
            self._changed(path)

    def _changed(self, path: str) -> None:
        self.pending.append((str(Path(path).parent), dict(self.names)))

    def _sync_folder(self, path: str) -> None:
        """A journal commits in order: everything up to this folder's last change is durable."""
        last = max((i for i, (p, _) in enumerate(self.pending) if p == path), default=-1)
        if last >= 0:
            self.durable = self.pending[last][1]
            self.pending = self.pending[last + 1 :]

    def states(self) -> Iterator[dict[str, bytes]]:
        """Path to content (``b"<folder>"`` for a folder)."""
        seen = set()
        for names in (self.durable, *(names for _, names in self.pending)):
            for data in (self.synced, self.data):
                state = {p: data[n] for p, n in names.items()}
                key = tuple(sorted(state.items()))
                if key not in seen:
                    seen.add(key)
                    yield state


def build(state: dict[str, bytes], old: str, new: Path) -> None:
    """Puts a state on the disk, below ``new`` in place of ``old``."""
    for path in sorted(state):
        target = new / os.path.relpath(path, old)
        if state[path] == b"<folder>":
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(state[path])
