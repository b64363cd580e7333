"""What cannot go on exactly on another number of processes is refused, with the way out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hatbus.errors import CheckpointError
from hatbus_checkpoint import manifest
from hatbus_checkpoint.folder import CheckpointFolder

sys.path.insert(0, str(Path(__file__).parent))
from small import DATA, tiny

sys.path.pop(0)


class KeepsItsPlace:
    """A loader with a state of its own."""

    def __init__(self) -> None:
        self.at = 0

    def __len__(self) -> int:
        return len(DATA)

    def __iter__(self) -> Iterator[Any]:
        start, self.at = self.at % len(DATA), self.at % len(DATA)
        for batch in DATA[start:]:
            self.at += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def as_of_two(path: Path) -> None:
    """Makes a checkpoint one of two processes: a file more, and what the manifest says."""
    found = manifest.read(path)
    for suffix in ("json", "safetensors"):
        name = f"rank-0.{suffix}"
        if name in found["files"]:
            (path / f"rank-1.{suffix}").write_bytes((path / name).read_bytes())
            found["files"][f"rank-1.{suffix}"] = found["files"][name]
    found["content"] = manifest.content_hash(found["files"])
    kept = {k: v for k, v in found.items() if k not in ("sha256", "format")}
    (path / manifest.NAME).write_bytes(manifest.write({**kept, "world_size": 2}))


def saved_after(steps: int, folder: Path) -> Path:
    tiny(folder, data=KeepsItsPlace(), save_interval=None).fit(num_steps=steps)
    (entry,) = CheckpointFolder(folder).entries()
    as_of_two(entry.path)
    return entry.path


def test_a_loader_that_keeps_its_place_is_refused_in_the_middle_of_an_epoch(
    tmp_path: Path,
) -> None:
    path = saved_after(2, tmp_path)
    again = tiny(tmp_path / "again", data=KeepsItsPlace(), resume=str(path))
    words = "of 2 processes in the middle of an epoch, and the loader keeps its place itself"
    with pytest.raises(CheckpointError, match=words):
        again.fit(num_steps=5)


def test_between_epochs_it_goes_on(tmp_path: Path) -> None:
    path = saved_after(3, tmp_path)
    ctx = tiny(tmp_path / "again", data=KeepsItsPlace(), resume=str(path)).fit(num_steps=5)
    assert ctx.updates == 5
    whole = tiny(tmp_path / "whole", data=KeepsItsPlace()).fit(num_steps=5)
    assert torch.equal(ctx.model.weight, whole.model.weight)
    assert json.loads((path / "MANIFEST.json").read_text())["world_size"] == 2
