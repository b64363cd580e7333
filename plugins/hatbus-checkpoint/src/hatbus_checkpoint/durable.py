"""Files and folders that are on the disk when a function returns, or not there at all.

::

    mkdir .tmp-x          only this process writes here (the lock)
    write files           O_EXCL, every byte, hashed beside the writing, fsync
    fsync folders
    rename .tmp-x -> x    the commit
    fsync parent          now it is durable

Source for the order of calls: T. S. Pillai et al., "All File Systems Are Not Created Equal", OSDI
2014. After a failed fsync nothing is retried: the kernel may have dropped the pages.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import queue
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from hatbus.errors import SaveError

_JOINED: Final = 1 << 20
"""Small chunks are joined to so many bytes before they are written."""
_PIECE: Final = 8 << 20
"""Large chunks are written in pieces of so many bytes, so that hashing keeps step."""
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


class Written(NamedTuple):
    """Size in bytes and sha256 of a file."""

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[memoryview | bytes]) -> Written:
    """Writes a new file and brings it to the disk.

    Raises:
        OSError: it exists, or the disk failed.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with _Hash() as digest:
            size = 0
            for piece in _pieces(chunks):
                digest.update(piece)
                written = _write_all(file, piece)
                _flush_soon(file, size, written)
                size += written
        os.fsync(file)
    finally:
        os.close(file)
    return Written(size, digest.hexdigest())


def sync_folder(path: Path) -> None:
    """Brings a folder's names to the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_folder(path: Path) -> None:
    """Removes a folder and what is in it; links are removed, not followed."""
    with os.scandir(path) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            remove_folder(Path(entry.path))
        else:
            os.unlink(entry.path)  # noqa: PTH108 - every call of this module goes through `os`
    os.rmdir(path)  # noqa: PTH106


def commit(temporary: Path, final: Path) -> None:
    """Gives a finished folder its name, durably, or removes it.

    Raises:
        OSError: the disk failed; the folder is not there under its final name.
    """
    os.rename(temporary, final)  # noqa: PTH104
    try:
        sync_folder(final.parent)
    except BaseException:
        with suppress(OSError):
            os.rename(final, temporary)  # noqa: PTH104
        raise


def replace_file(path: Path, chunks: Iterable[memoryview | bytes]) -> None:
    """Writes a file in place of another of the name; a reader sees one of the two."""
    partial = path.with_name(f".tmp-{path.name}")  # a killed one is swept, or replaced by the next
    with suppress(FileNotFoundError):
        os.unlink(partial)  # noqa: PTH108
    try:
        write_file(partial, chunks)
        os.rename(partial, path)  # noqa: PTH104
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)  # noqa: PTH108
        raise
    sync_folder(path.parent)


def save_error(error: OSError, folder: Path, needed: int | None = None) -> SaveError:
    """What to tell about a failed write: why, the bytes needed and free, and what still stands."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _NO_SPACE:
        with suppress(OSError):
            free = shutil.disk_usage(folder).free
            size = f"needs {needed:,} bytes, " if needed else ""
            reason = f"{reason} ({size}{free:,} bytes are free)"
    return SaveError(
        f"cannot save to {str(folder)!r}: {reason}; earlier checkpoints are intact: "
        "make room or choose another save_dir, then resume"
    )


def _pieces(chunks: Iterable[memoryview | bytes]) -> Iterator[memoryview]:
    """Chunks neither very small nor very large."""
    small: list[memoryview | bytes] = []
    waiting = 0
    for chunk in chunks:
        if len(chunk) < _JOINED:
            small.append(chunk)
            waiting += len(chunk)
        if small and (waiting >= _JOINED or len(chunk) >= _JOINED):
            yield memoryview(b"".join(small))
            small, waiting = [], 0
        if len(chunk) >= _JOINED:
            view = memoryview(chunk)
            yield from (view[i : i + _PIECE] for i in range(0, len(view), _PIECE))
    if small:
        yield memoryview(b"".join(small))


def _write_all(file: int, piece: memoryview) -> int:
    done = 0
    while done < len(piece):
        done += os.write(file, piece[done:])
    return done


def _find_flush() -> Any:
    """Linux's ``sync_file_range``; None where there is none."""
    try:
        found: Any = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return found


_flush: Final = _find_flush()


def _flush_soon(file: int, offset: int, size: int) -> None:
    """Lets the disk begin with these bytes, so that the fsync at the end has less to wait for."""
    if _flush is not None and size >= _JOINED:
        _flush(file, offset, size, 2)  # SYNC_FILE_RANGE_WRITE; only a hint: fsync is what counts


class _Hash:
    """sha256 in a thread of its own once there is more than one large piece to hash."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256(usedforsecurity=False)
        self._queue: queue.Queue[memoryview | None] = queue.Queue(maxsize=4)
        self._thread: threading.Thread | None = None

    def update(self, piece: memoryview) -> None:
        """Hashes a piece, now or soon."""
        if self._thread is None and len(piece) < _JOINED:
            self._digest.update(piece)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="hatbus-sha256")
            self._thread.start()
        self._queue.put(piece)

    def hexdigest(self) -> str:
        """The hash of everything."""
        return self._digest.hexdigest()

    def _work(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._digest.update(piece)

    def __enter__(self) -> _Hash:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
