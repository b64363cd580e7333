"""Finds the checkpoint that a run is to be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hatbus.errors import CheckpointError, did_you_mean
from hatbus_checkpoint import manifest
from hatbus_checkpoint.folder import CheckpointFolder, Entry, save_dir_in

AUTO: Final = "auto"


def locate(wanted: str | Path, own: CheckpointFolder) -> Entry | None:
    """The checkpoint to resume from.

    Args:
        wanted: ``"auto"`` for the newest good one of the run's own folder; else a checkpoint (no
            other is tried in its place), or a folder of checkpoints, or a run's folder.
        own: the run's own folder.

    Returns:
        None when ``"auto"`` finds no checkpoint at all: the run starts from scratch.

    Raises:
        CheckpointError: there is nothing, or nothing that can be used.
    """
    if wanted == AUTO:
        return own.latest()
    path = Path(wanted)
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside)
        raise CheckpointError(f"resume: there is no checkpoint {str(path)!r}{hint}")
    if not (path / manifest.NAME).exists():
        inside = CheckpointFolder(save_dir_in(path), own.prefix)
        if inside.entries():
            return inside.latest()
    try:
        return Entry(path, manifest.verify(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be used: {error}; an explicit path has no fallback, "
            "resume = 'auto' has"
        ) from error
