"""One run per folder: a lock that goes away with the process that holds it."""

from __future__ import annotations

import json
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hatbus.errors import JobError

try:
    import fcntl
except ImportError:  # not on this system: runs are not kept apart
    fcntl = None  # type: ignore[assignment]

NAME: Final = "run.lock"


_held: Final[weakref.WeakSet[FolderLock]] = weakref.WeakSet()


class FolderLock:
    """``flock`` on ``<folder>/<prefix>run.lock``; the file says who holds it.

    Forked children (workers of a loader) let go of it, or they would hold it when we are gone.

    Raises:
        JobError: another run holds it.
    """

    def __init__(self, folder: Path, prefix: str, run: str) -> None:
        self._file = os.open(folder / f"{prefix}{NAME}", os.O_RDWR | os.O_CREAT, 0o644)
        _held.add(self)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(self._file)
            self.release()
            raise JobError(
                f"another run saves to {str(folder)!r}: {holder}; wait for it, stop it, "
                "or choose another save_dir or name_prefix"
            ) from error
        text = {"pid": os.getpid(), "host": socket.gethostname(), "run": run}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(text).encode(), 0)

    def release(self) -> None:
        """Gives the folder free; the file stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _let_go() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _holder(file: int) -> str:
    found: Any = None
    with suppress(ValueError, OSError):
        found = json.loads(os.pread(file, 4096, 0))
    if not isinstance(found, dict) or "pid" not in found:
        return "an unknown process"
    return f"process {found['pid']} on {found.get('host')}"
