"""The folder of event files: what is in it from earlier runs, and clearing that."""

from __future__ import annotations

from pathlib import Path

from hatbus.errors import SaveError
from hatbus.log import log
from hatbus_tensorboard.event_file import PATTERN


def event_files(folder: Path) -> list[Path]:
    """Event files in the folder and below it (sub-runs)."""
    return sorted(p for p in folder.rglob(PATTERN) if p.is_file()) if folder.is_dir() else []


def clear(folder: Path) -> None:
    """Deletes the event files in a folder and below it, then the folders that are empty.

    Anything else stays, so a folder that holds other things is safe.

    Raises:
        SaveError: a file cannot be deleted.
    """
    files = event_files(folder)
    try:
        for file in files:
            file.unlink()
        for parent in sorted({f.parent for f in files}, key=lambda p: len(p.parts), reverse=True):
            if parent != folder and not any(parent.iterdir()):
                parent.rmdir()
    except OSError as error:
        raise SaveError(f"tensorboard: cannot clear {str(folder)!r}: {error}") from error
    if files:
        log.info("tensorboard: %d event files of earlier runs deleted in %s", len(files), folder)
