"""Files and folders that are on the disk when a function returns, or not there at all.

::

    mkdir .tmp-x          only this process writes here (the lock)
    write files           O_EXCL, every byte, hashed behind the writing
    fsync files
    fsync folders
    rename .tmp-x -> x    the commit
    fsync parent          now it is durable

Source for the order of calls: T. S. Pillai et al., "All File Systems Are Not Created Equal", OSDI
2014. After a failed fsync nothing is retried: the kernel may have dropped the pages.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from hatbus.errors import SaveError
from hatbus_checkpoint import stream
from hatbus_checkpoint.stream import Chunks

try:
    import fcntl
except ImportError:  # not on this system, which has no O_DIRECT either
    fcntl = None  # type: ignore[assignment]

_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_TOGETHER: Final = 64
"""Files that are open at a time at most."""


class Written(NamedTuple):
    """Size in bytes and sha256 of a file."""

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[memoryview | bytes]) -> Written:
    """Writes a new file and brings it to the disk.

    Raises:
        OSError: it exists, or the disk failed.
    """
    (written,) = write_files({path: lambda: chunks})
    return written


def write_files(files: Mapping[Path, Chunks]) -> list[Written]:
    """The same of several, which the disk is waited for together.

    Raises:
        OSError: one exists, or the disk failed.
    """
    found: list[Written] = []
    paths = iter(files)
    while some := list(islice(paths, _TOGETHER)):
        with ThreadPoolExecutor(1, "hatbus-hash") as hashing, ExitStack() as opened:
            memory = stream.Memory(hashing)
            begun = [_write(path, files[path](), memory, opened) for path in some]
            for file, _ in begun:
                os.fsync(file)
        found += [Written(whole.size, whole.sha256) for _, whole in begun]
    return found


def link_file(path: Path, name: Path) -> None:
    """Gives a file another name; ``sync_folder`` brings that to the disk."""
    os.link(path, name)


def unlink_file(path: Path) -> None:
    """Takes a name away."""
    os.unlink(path)  # noqa: PTH108 - every call of this module goes through `os`


def make_folder(path: Path) -> None:
    """A folder that may be there already."""
    with suppress(FileExistsError):
        os.mkdir(path)  # noqa: PTH102


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
    if not folder.is_dir():
        return SaveError(
            f"cannot save: the folder {str(folder)!r} is gone ({reason}); put it back and resume, "
            "or start a new run"
        )
    if error.errno in _NO_SPACE:
        with suppress(OSError):
            free = shutil.disk_usage(folder).free
            size = f"needs {needed:,} bytes, " if needed else ""
            reason = f"{reason} ({size}{free:,} bytes are free)"
    return SaveError(
        f"cannot save to {str(folder)!r}: {reason}; earlier checkpoints are intact: "
        "make room or choose another save_dir, then resume"
    )


def _write(
    path: Path, chunks: Iterable[memoryview | bytes], memory: stream.Memory, opened: ExitStack
) -> tuple[int, stream.Stream]:
    """Writes a new file, which stays open: it is not on the disk yet."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    opened.callback(os.close, file)
    whole = stream.Stream(chunks, memory)
    for block in whole.blocks():
        _pass_cache(file, on=len(block) == stream.BLOCK)
        _write_all(file, block)
    return file, whole


def _write_all(file: int, block: memoryview) -> None:
    """Writes every byte; where the file system does not go past its cache after all, through it."""
    done = 0
    while done < len(block):
        try:
            done += os.write(file, block[done:])
        except OSError as error:
            if error.errno != errno.EINVAL or not _pass_cache(file, on=False):
                raise


def _pass_cache(file: int, *, on: bool) -> bool:
    """Whether it was changed that writes go to the disk without a copy in the system's cache.

    A durable file has to go to the disk anyway. This way it neither costs the copy nor drives out
    what others read, and it goes there while others are hashed.
    """
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    if bool(flags & _DIRECT) == on:
        return False
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_SETFL, flags ^ _DIRECT)
        return True
    return False
