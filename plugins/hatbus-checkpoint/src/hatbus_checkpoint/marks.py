"""What a kill may leave undone after a checkpoint is durable: its marks, and the best weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hatbus.log import log
from hatbus_checkpoint import durable
from hatbus_checkpoint.retention import best_of

if TYPE_CHECKING:
    from pathlib import Path

    from hatbus_checkpoint.folder import CheckpointFolder, Entry


def mend(
    folder: CheckpointFolder, run: str, metric: tuple[str, str | None], wanted: bool | None
) -> None:
    """Marks the newest and the best checkpoint of a run that goes on, as its saves would have.

    Args:
        folder: of the checkpoints.
        run: id of the run.
        metric: name and mode of what decides on best.
        wanted: ``weights_only_export``.
    """
    mine = [e for e in folder.entries() if not e.fault and e.manifest["run"] == run]
    best = best_of(mine, metric)
    try:
        for kind, entry in (("last", mine[0] if mine else None), ("best", best)):
            if entry is not None and folder.pointed(kind) != entry.path.name:
                folder.point(kind, entry.path.name, progress=entry.manifest["progress"])
                log.info("marked %s as %s, as a kill had left undone", entry.path.name, kind)
            if entry is not None and (wanted or (wanted is None and kind == "best")):
                _mend_weights(folder.path / f"{folder.prefix}weights-{kind}.safetensors", entry)
    except OSError as error:
        log.warning("the marks in %r could not be written: %s", str(folder.path), error)


def _mend_weights(path: Path, entry: Entry) -> None:
    """The weights file, where it is missing or another checkpoint's."""
    there = entry.manifest["files"]["model.safetensors"]
    if not path.exists() or _digest(path) != there["sha256"]:
        durable.replace_file(path, [(entry.path / "model.safetensors").read_bytes()])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
