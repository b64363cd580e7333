"""``Checkpoint.load``: what a checkpoint holds of a model, without a trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatbus.loop import RAW
from hatbus_checkpoint.weights import entry_at, weights_in


@dataclass(frozen=True)
class Loaded:
    """What was read.

    Attributes:
        path: the checkpoint, or the file.
        weights: name to tensor, for ``model.load_state_dict``.
        epoch: whole epochs that were behind the run; None for a file of weights alone.
        step: steps that were; None likewise.
        metrics: name to value of what was published last before the save.
    """

    path: Path
    weights: dict[str, Any]
    epoch: int | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def load(path: Path | str, weights: str = RAW) -> Loaded:
    """Reads a checkpoint; nothing in it is run.

    Args:
        path: as for ``weights_of``: a checkpoint, a folder of them or a run's (the newest is
            taken), such a folder and ``/best``, a file of weights.
        weights: ``"raw"``, or the plugin whose averages take the place of the raw weights.

    Raises:
        CheckpointError: there is nothing of the kind, it is damaged, or holds no such averages.
    """
    entry = entry_at(path)
    found = weights_in(path if entry is None else entry, weights)
    if entry is None:
        return Loaded(Path(path), found)
    progress = entry.manifest["progress"]
    metrics = {name: float(value) for name, value in entry.manifest["metrics"].items()}
    return Loaded(entry.path, found, progress["epoch"], progress["global_step"], metrics)
