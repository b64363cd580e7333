"""One run per folder of checkpoints: a lock that goes away with the process that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hatbus.errors import JobError
from hatbus.runs import FileLock

NAME: Final = "run.lock"


class FolderLock:
    """A lock on ``<folder>/<prefix>run.lock``; the file says who holds it.

    Raises:
        JobError: another run holds it.
    """

    def __init__(self, folder: Path, prefix: str, run: str) -> None:
        try:
            self._lock = FileLock(folder / f"{prefix}{NAME}", run=run)
        except BlockingIOError as error:
            raise JobError(
                f"another run saves to {str(folder)!r}: {error}; wait for it, stop it, "
                "or choose another save_dir or name_prefix"
            ) from error

    def release(self) -> None:
        """Gives the folder free; the file stays."""
        self._lock.release()
