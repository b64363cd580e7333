"""Saves that share files with earlier ones hold exactly what saves that write all would."""

from __future__ import annotations

import random
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hatbus.errors import CheckpointError, JobError
from hatbus_checkpoint import finite_file, manifest, pieces, tensor_file
from hatbus_checkpoint.folder import CheckpointFolder, entry_of
from hatbus_checkpoint.saving import Saves
from hatbus_checkpoint.sharded.peers import Peers
from hatbus_checkpoint.snapshot import Snapshot
from hatbus_checkpoint.tensor_file import as_bytes
from hatbus_checkpoint.unchanged import digests, unchanged

sys.path.insert(0, str(Path(__file__).parent))
from fine_tuning import Thaws, fine_tuning, inodes, newest_first, states_in

sys.path.pop(0)

FIELDS: dict[str, Any] = {
    "run": "me",
    "lineage": 1,
    "progress": {"epoch": 0, "step": 1, "global_step": 1},
    "plugins": [],
    "settings": {},
    "metrics": {},
    "world_size": 1,
}

ALONE: Any = Peers(cast("Any", SimpleNamespace(rank=0, world_size=1, control=None)))


@pytest.fixture(autouse=True)
def _small_files_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "LEAST", 64)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("thaw", [99, 3])
def test_every_checkpoint_holds_what_one_that_is_written_whole_does(
    tmp_path: Path, copies: int, async_save: bool, thaw: int
) -> None:
    options = {"save_hash": False, "copies": copies, "async_save": async_save}
    for name, more in (("whole", {"incremental": False}), ("shared", options)):
        plain = {**options, **more}
        fine_tuning(tmp_path / name, {"thaws": Thaws(thaw)}, **plain).fit(num_steps=7)
    whole, shared = states_in(tmp_path / "whole"), states_in(tmp_path / "shared")
    assert len(whole) == 7
    assert shared == whole
    kinds = {e.manifest["format"] for e in CheckpointFolder(tmp_path / "shared").entries()}
    assert 2 in kinds


def test_frozen_weights_and_their_average_are_written_once(tmp_path: Path) -> None:
    fine_tuning(tmp_path, copies=1).fit(num_steps=4)
    files = newest_first(tmp_path)[0].rglob("*.safetensors")
    assert {p.name: p.stat().st_nlink for p in files} == {
        "model-00001.safetensors": 4,
        "model-00002.safetensors": 2,  # the table: a buffer is known to stay when it did
        "model-00000.safetensors": 1,
        "ema-00001.safetensors": 4,
        "optim.safetensors": 1,
    }


def test_with_two_copies_neighbours_share_nothing_and_the_others_all(tmp_path: Path) -> None:
    fine_tuning(tmp_path).fit(num_steps=6)
    found = [inodes(path) for path in newest_first(tmp_path)]
    for one, other in pairwise(found):
        assert one.isdisjoint(other)
    assert [len(one & other) for one, other in zip(found, found[2:], strict=False)] == [3, 3, 2, 2]


def test_a_run_in_which_all_changes_has_the_files_that_it_always_had(tmp_path: Path) -> None:
    fine_tuning(tmp_path, {"thaws": Thaws(0)}, copies=1, save_hash=False).fit(num_steps=1)
    (entry,) = CheckpointFolder(tmp_path).entries()
    assert entry.manifest["format"] == 1
    assert {"model.safetensors", "optim.safetensors"} <= set(entry.manifest["files"])


@pytest.mark.parametrize("seed", range(12))
def test_any_history_of_changes_is_read_back_exactly(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(digests, "_SAMPLED", chance.choice([1, 8]))
    monkeypatch.setattr(unchanged, "_LARGEST", chance.choice([100, 1000, 1 << 20]))
    monkeypatch.setattr(unchanged, "_MOST", chance.choice([1, 3, 24]))
    folder = CheckpointFolder(tmp_path)
    folder.probe()
    saves = Saves(folder, hashed=False)
    saves.share(chance.choice([1, 2]))
    state: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optim": {}, "plugins/a-00001": {}}
    expected: dict[Path, Any] = {}
    for number in range(20):
        for stem, tensors in state.items():
            for name in list(tensors):
                change(tensors, name, chance)
            for _ in range(chance.randrange(3)):
                tensors[f"{stem}{chance.randrange(30)}"] = odd_tensor(chance)
        parts: dict[str, Any] = {stem: (None, tensors) for stem, tensors in state.items()}
        begun = saves.begin(f"checkpoint-step-{number}", Snapshot(parts), frozen_by(chance, state))
        newest = saves.write(begun, FIELDS, ALONE, lambda entry: entry.path)
        expected[newest] = as_plain(state)
        for path in list(expected):
            if chance.random() < 0.15:  # somebody removes, moves or spoils one
                spoil(path, chance)
                del expected[path]
        if chance.random() < 0.1 and newest in expected:  # another process goes on
            saves = Saves(folder, hashed=False)
            saves.share(chance.choice([1, 2]))
            saves.adopt(entry_of(newest))
        for path, plain in expected.items():
            manifest.verify(path)
            found = as_plain({stem: stored(path, stem) for stem in state})
            bad = {k: (found.get(k), plain.get(k)) for k in {*found, *plain}}
            assert {k: v for k, v in bad.items() if v[0] != v[1]} == {}


def change(tensors: dict[str, torch.Tensor], name: str, chance: random.Random) -> None:
    """Mostly nothing; else the whole, one element behind torch's back, or another tensor."""
    kind, tensor = chance.randrange(12), tensors[name]
    if kind == 0:
        tensors[name] = odd_tensor(chance)
    elif kind == 1:
        del tensors[name]
    elif kind == 2 and tensor.numel():
        version, where = tensor._version, tuple(chance.randrange(n) for n in tensor.shape)
        tensor.data[where] = tensor[where] == 0
        assert tensor._version == version
    elif kind == 3:
        tensors[name] = tensor.clone()


def odd_tensor(chance: random.Random) -> torch.Tensor:
    shape = [chance.randrange(6) for _ in range(chance.randrange(4))]
    dtype = chance.choice([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
    tensor = torch.randint(0, 2, [2 * n for n in shape]).to(dtype)
    return tensor[tuple(slice(None, None, 2) for _ in shape)] if chance.random() < 0.3 else tensor


def frozen_by(chance: random.Random, state: Any) -> set[tuple[str, str]]:
    every = [(stem, name) for stem, tensors in state.items() for name in tensors]
    return {key for key in every if chance.random() < 0.3}


def stored(path: Path, stem: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name in pieces.files_of(manifest.read(path), stem):
        found |= tensor_file.read(path / name)
    return found


def as_plain(state: Any) -> dict[tuple[str, str], Any]:
    return {
        (stem, name): (tensor.dtype, tensor.shape, bytes(as_bytes(tensor)))
        for stem, tensors in state.items()
        for name, tensor in tensors.items()
    }


def spoil(path: Path, chance: random.Random) -> None:
    if chance.random() < 0.5:
        shutil.rmtree(path)
    else:
        path.rename(path.with_name(f"moved-{path.name}"))


@pytest.mark.parametrize("trained", ["frozen", "head"])
def test_weights_that_are_not_finite_are_found_in_any_piece(tmp_path: Path, trained: str) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.probe()
    saves = Saves(folder, hashed=False)
    saves.share(1)
    tensors = {"frozen": torch.ones(99), "head": torch.ones(99)}
    tensors[trained][7] = torch.nan
    optim: Any = {"groups": [{"params": [trained]}]}
    parts: dict[str, Any] = {"model": (None, tensors), "optim": (optim, {})}
    begun = saves.begin("checkpoint-step-1", Snapshot(parts), {("model", "frozen")})
    path = saves.write(begun, FIELDS, ALONE, lambda entry: entry.path)
    assert "split" in manifest.read(path)
    with pytest.raises(CheckpointError, match=f"its parameter '{trained}' is not finite"):
        finite_file.verify(path)


def test_an_odd_number_of_copies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="copies is 3; accepted: 1, 2"):
        fine_tuning(tmp_path, copies=3)
