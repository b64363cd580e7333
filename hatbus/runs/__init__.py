"""A folder per run: finding or making it, what it keeps of the run, and reading many of them.

Public: the run that a path means, and a lock on a file that goes away with its process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.runs.folders import run_folder
    from hatbus.runs.lock import FileLock

__all__ = ["FileLock", "run_folder"]

__getattr__ = lazily(__name__, run_folder="folders", FileLock="lock")
