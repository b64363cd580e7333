"""What a kill may leave undone after a checkpoint is durable: its marks, and the best weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hatbus.log import log
from hatbus_checkpoint import durable
from hatbus_checkpoint.bests import mark_of
from hatbus_checkpoint.exchange import weight_chunks
from hatbus_checkpoint.saving import is_exported
from hatbus_checkpoint.sharded.shard_files import ranks_with

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from hatbus_checkpoint.folder import CheckpointFolder, Entry
    from hatbus_checkpoint.retention import Ranking


def mend(
    folder: CheckpointFolder, run: str, rankings: Sequence[Ranking], wanted: bool | None
) -> None:
    """Marks the newest and the best checkpoints of a run that goes on, as its saves would have.

    Args:
        folder: of the checkpoints.
        run: id of the run.
        rankings: what decides on best.
        wanted: ``weights_only_export``.
    """
    mine = [e for e in folder.entries() if not e.fault and e.manifest["run"] == run]
    found = {"last": mine[0] if mine else None}
    found |= {mark_of(one.name): next(iter(one.ranked(mine)), None) for one in rankings}
    try:
        for kind, entry in found.items():
            if entry is not None and folder.pointed(kind) != entry.path.name:
                folder.point(kind, entry.path.name, progress=entry.manifest["progress"])
                log.info("marked %s as %s, as a kill had left undone", entry.path.name, kind)
            if entry is not None and is_exported(kind, wanted):
                _mend_weights(folder.path / f"{folder.prefix}weights-{kind}.safetensors", entry)
    except OSError as error:
        log.warning("the marks in %r could not be written: %s", str(folder.path), error)


def _mend_weights(path: Path, entry: Entry) -> None:
    """The weights file, where it is missing or another checkpoint's."""
    files = entry.manifest["files"]
    if ranks_with("model", files) or "model.safetensors" not in files:
        if not path.exists() or _digest(path) != _digest_of(weight_chunks(entry)):
            durable.replace_file(path, weight_chunks(entry))
    elif not path.exists() or _digest(path) != files["model.safetensors"]["sha256"]:
        durable.replace_file(path, [(entry.path / "model.safetensors").read_bytes()])


def _digest_of(chunks: Iterable[memoryview]) -> str:
    found = hashlib.sha256(usedforsecurity=False)
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
