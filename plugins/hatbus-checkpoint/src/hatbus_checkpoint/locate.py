"""Finds the checkpoint that a run is to be resumed from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from hatbus import option_values
from hatbus.errors import CheckpointError, did_you_mean
from hatbus.runs import run_folder
from hatbus_checkpoint import finite_file, manifest
from hatbus_checkpoint.folder import (
    MARKS,
    CheckpointFolder,
    Entry,
    Verify,
    is_mark,
    prefixes_in,
    save_dir_in,
)

AUTO: Final = "auto"
NEW: Final = "new"
"""What ``resume`` of the run is when it begins anew, whatever the plugin's own says."""


def locate(
    wanted: str | Path, own: CheckpointFolder, verify: Verify = finite_file.verify
) -> Entry | None:
    """The checkpoint to resume from.

    Args:
        wanted: ``"auto"`` for the newest good one of the run's own folder; ``"last"`` or ``"best"``
            for the one that is marked so there, and after a folder's path for the one there; else
            a checkpoint (no other is tried in its place), or a folder of checkpoints, or a run's
            folder.
        own: the run's own folder.
        verify: finds out whether every byte is right; the manifest.

    Returns:
        None when ``"auto"`` finds no checkpoint at all: the run starts from scratch.

    Raises:
        CheckpointError: there is nothing, or nothing that can be used.
    """
    if wanted == AUTO:
        return own.latest(verify)
    path = Path(wanted)
    if is_mark(wanted):
        path = _marked(str(wanted), own)
    elif is_mark(path.name) and not path.exists() and path.parent.is_dir():
        path = _marked(path.name, CheckpointFolder(save_dir_in(path.parent), own.prefix))
    if not path.is_dir():
        hint = did_you_mean(path.name, _beside(path))
        raise CheckpointError(f"resume: there is no checkpoint {str(path)!r}{hint}")
    if not (path / manifest.NAME).exists():
        inside = CheckpointFolder(save_dir_in(path), own.prefix)
        if inside.entries():
            return inside.latest(verify)
    try:
        return Entry(path, verify(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be used: {error}; an explicit path has no fallback, "
            "resume = 'auto' has"
        ) from error


def wanted_place(name: str, wanted: str | Path) -> str:
    """A word for a checkpoint as it is; a path as the place that it means now.

    Raises:
        JobError: it is neither.
    """
    if wanted in (AUTO, *MARKS):
        return str(wanted)
    return str(run_folder(option_values.path(name, wanted)))


def wanted_first(of_run: str | None, own: str | None) -> str | None:
    """What to resume from: as the run says, which may be to begin anew; else the plugin's own."""
    wanted = of_run or own
    return None if wanted == NEW else wanted


def _marked(kind: str, folder: CheckpointFolder) -> Path:
    name = folder.pointed(kind)
    if name:
        return folder.path / name
    known = [e.path.name for e in folder.entries()]
    raise CheckpointError(
        f"resume: no checkpoint in {str(folder.path)!r} is marked {kind!r}{did_you_mean('', known)}"
    )


def _beside(path: Path) -> list[str]:
    """The checkpoints, and the folders with some inside, where a path that is none points to."""
    found = []
    with suppress(OSError):
        found = [p for p in path.parent.iterdir() if p.is_dir()]
    return [p.name for p in found if _has_checkpoints(p)]


def _has_checkpoints(path: Path) -> bool:
    with suppress(OSError):
        path = run_folder(path)
        inner = [p for p in path.iterdir() if p.is_dir()]
        return (path / manifest.NAME).exists() or any(map(prefixes_in, [path, *inner]))
    return False
