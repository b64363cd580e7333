"""A lock on a file that goes away with the process that holds it."""

from __future__ import annotations

import json
import os
import socket
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

try:
    import fcntl
except ImportError:  # not on this system: runs are not kept apart
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from pathlib import Path

_CAN_LOCK: Final = hasattr(fcntl, "flock")
_held: Final[weakref.WeakSet[FileLock]] = weakref.WeakSet()


class FileLock:
    """``flock`` on a file, which says who holds it; one more process, or holder, gets none.

    Forked children (workers of a loader) let go of it, or they would hold it when we are gone.

    Args:
        path: of the file; it is made, and stays.
        about: written into the file, beside the process.

    Raises:
        BlockingIOError: another one holds it; its text says who.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, **about: Any) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        _held.add(self)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(self._file)
            self.release()
            raise BlockingIOError(holder) from error
        except OSError:  # a file system without locks: runs are not kept apart
            pass
        text = {"pid": os.getpid(), "host": socket.gethostname(), **about}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(text).encode(), 0)

    def release(self) -> None:
        """Gives it free; the file stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock on a file; False where there is none."""
    if not _CAN_LOCK:
        return path.exists()
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # somebody holds it, or this file system has no locks and nobody knows
        return True
    finally:
        os.close(file)
    return False


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
