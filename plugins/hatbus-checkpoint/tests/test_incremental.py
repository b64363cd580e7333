"""Saves that share files with earlier ones hold exactly what saves that write all would."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hatbus import Trainer, hookimpl, plugin
from hatbus.errors import CheckpointError, JobError
from hatbus_checkpoint import (
    Checkpoint,
    InitFrom,
    finite_file,
    listing,
    manifest,
    pieces,
    tensor_file,
    weights_of,
)
from hatbus_checkpoint.exchange import to_hat, to_single
from hatbus_checkpoint.folder import CheckpointFolder, entry_of
from hatbus_checkpoint.restore import Saved
from hatbus_checkpoint.saving import Saves
from hatbus_checkpoint.sharded.peers import Peers
from hatbus_checkpoint.snapshot import Snapshot
from hatbus_checkpoint.tensor_file import as_bytes
from hatbus_checkpoint.unchanged import digests, unchanged

sys.path.insert(0, str(Path(__file__).parent))
from runs import state_in

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


class Net(nn.Module):
    """A frozen body with a buffer, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64).requires_grad_(False)
        self.norm = nn.BatchNorm1d(64, affine=False)
        self.register_buffer("table", torch.arange(640.0))
        self.head = nn.Linear(64, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(inputs)))


@plugin(stage="average")
class Average:
    """An average of all weights: that of the frozen ones is equal to them."""

    def __init__(self) -> None:
        self.averages: dict[str, torch.Tensor] = {}

    @hookimpl
    def on_loop_begin(self, model: nn.Module) -> None:
        self.averages = self.averages or {
            n: p.detach().clone() for n, p in model.named_parameters()
        }

    @hookimpl
    def on_step_end(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            self.averages[name].lerp_(parameter.detach(), 0.5)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": {n: t.clone() for n, t in self.averages.items()}, "bias": torch.ones(9)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averages = state["averages"]


@plugin(stage="train")
class Thaws:
    """Trains the body too, after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def on_step_begin(self, global_step_id: int, model: Any, optimizer: Any) -> None:
        if global_step_id >= self.step:
            model.body.requires_grad_(True)


def fine_tuning(path: Path, plugins: Any = None, **options: Any) -> Trainer:
    """Four steps an epoch."""
    torch.manual_seed(0)
    model = Net()
    data = [(torch.randn(4, 64), torch.randn(4, 1)) for _ in range(4)]
    options = {"interval_by": "step", "resume": "auto", "incremental": True, **options}
    return Trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        data,
        nn.functional.mse_loss,
        {"ema": Average(), "checkpoint": Checkpoint(str(path), **options), **(plugins or {})},
    )


def states_in(folder: Path) -> dict[str, str]:
    """Everything in every checkpoint, verified."""
    for path in newest_first(folder):
        manifest.verify(path)
    return {path.name: state_in(path) for path in newest_first(folder)}


def inodes(path: Path) -> set[int]:
    return {p.stat().st_ino for p in path.rglob("*.safetensors")}


def newest_first(folder: Path) -> list[Path]:
    return [e.path for e in CheckpointFolder(folder).entries()]


# ---- what is in it ------------------------------------------------------------------------------


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


# ---- when files are not what they were ----------------------------------------------------------


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    with path.open("r+b") as file:  # in place: every name of it is damaged
        file.write(data)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_damaged_file_spoils_all_that_share_it_and_with_two_copies_not_the_neighbour(
    tmp_path: Path, copies: int
) -> None:
    fine_tuning(tmp_path, copies=copies, keep_last=2, save_hash=False).fit(num_steps=6)
    newest, before = newest_first(tmp_path)
    damaged(next(p for p in sorted(newest.glob("model-*")) if "00000" not in p.name))
    folder = CheckpointFolder(tmp_path)
    if copies == 1:
        with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* can be used"):
            folder.latest()
        return
    entry = folder.latest()
    assert entry is not None
    assert entry.path == before
    fine_tuning(tmp_path, copies=2, save_hash=False).fit(num_steps=8)
    good = [path for path in newest_first(tmp_path) if path != newest]
    assert [path.name for path in good[:3]] == [f"checkpoint-step-{n}" for n in (8, 7)] + [
        "checkpoint-step-6.2"
    ]
    for path in good:
        manifest.verify(path)


def test_what_was_written_to_in_place_is_not_shared_again(tmp_path: Path) -> None:
    trainer = fine_tuning(tmp_path, {"meddles": Meddles(tmp_path, damaged)}, copies=1)
    trainer.fit(num_steps=4)
    faults = [bool(fault_of(path)) for path in newest_first(tmp_path)]
    assert faults == [False, False, True, True]


def test_what_was_removed_by_hand_is_written_again(tmp_path: Path) -> None:
    trainer = fine_tuning(tmp_path, {"meddles": Meddles(tmp_path, gone)}, copies=1)
    trainer.fit(num_steps=4)
    assert len(newest_first(tmp_path)) == 2
    assert states_in(tmp_path)


@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("name", ["EMLINK", "EXDEV", "EPERM"])
def test_where_a_link_cannot_be_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, async_save: bool
) -> None:
    link, calls = os.link, iter(range(99))

    def fails(*paths: Any) -> None:
        if next(calls) % 3:
            raise OSError(getattr(errno, name), name)
        link(*paths)

    monkeypatch.setattr(os, "link", fails)
    options: dict[str, Any] = {"save_hash": False, "copies": 1, "async_save": async_save}
    fine_tuning(tmp_path / "shared", **options).fit(num_steps=7)
    assert next(calls) > 7
    fine_tuning(tmp_path / "whole", save_hash=False, incremental=False).fit(num_steps=7)
    assert states_in(tmp_path / "shared") == states_in(tmp_path / "whole")


def test_a_file_system_without_links_is_told_and_gets_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*paths: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", fails)
    fine_tuning(tmp_path).fit(num_steps=3)
    assert caplog.text.count("a file cannot have a second name") == 1
    assert {e.manifest["format"] for e in CheckpointFolder(tmp_path).entries()} == {1}


class Meddles:
    """Does something to the files with what stays, before the third step is saved."""

    def __init__(self, place: Path, work: Any) -> None:
        self.place, self.work = place, work

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == 2:
            files = [path / "model-00001.safetensors" for path in newest_first(self.place)]
            self.work(files[0])


def gone(file: Path) -> None:
    for path in newest_first(file.parents[1]):
        shutil.rmtree(path)


def fault_of(path: Path) -> str:
    try:
        manifest.verify(path)
    except CheckpointError as error:
        return str(error)
    return ""


# ---- what others make of it ---------------------------------------------------------------------


def test_a_folder_that_is_copied_is_whole_and_others_read_the_model_by_its_index(
    tmp_path: Path,
) -> None:
    trainer = fine_tuning(tmp_path / "run", copies=1, keep_last=2)
    trainer.fit(num_steps=5)
    newest = newest_first(tmp_path / "run")[0]
    copy = shutil.copytree(newest, tmp_path / "copy" / newest.name)
    shutil.rmtree(tmp_path / "run")
    manifest.verify(copy)
    whole = trainer.ctx.model.state_dict()
    assert weights_of(copy).keys() == whole.keys()
    index = json.loads((copy / "model.safetensors.index.json").read_bytes())
    found = {n: load_file(copy / file)[n] for n, file in index["weight_map"].items()}
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    held = [name for file in set(index["weight_map"].values()) for name in load_file(copy / file)]
    assert sorted(held) == sorted(whole)  # nothing stale, nothing twice
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    again = fine_tuning(tmp_path / "other", resume=str(copy))
    assert again.fit(num_steps=7).updates == 7


def test_the_best_weights_are_one_file_also_when_a_kill_left_them_undone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"copies": 1, "weights_only_export": True}
    trainer = fine_tuning(tmp_path, async_save=True, **options)
    trainer.fit(num_steps=5)
    file = tmp_path / "weights-last.safetensors"
    before = file.read_bytes()
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, trainer.ctx.model.state_dict()[name])
    file.write_bytes(b"half")
    fine_tuning(tmp_path, **options).fit(num_steps=5)
    assert file.read_bytes() == before


def test_commands_and_other_trainings_read_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = fine_tuning(run, copies=1)
    trainer.fit(num_steps=5)
    whole = trainer.ctx.model.state_dict()
    before, entry = (entry_of(path) for path in reversed(newest_first(run)[:2]))
    assert listing.row_of(entry, verified=True)["verified"]
    files = [line for line in listing.differences(before, entry) if line.startswith("file model")]
    assert files == ["file model-00000.safetensors: changed"]
    to_single(Saved(entry), tmp_path / "single.safetensors")
    to_hat(Saved(entry), tmp_path / "hat.pth.tar")
    found = [load_file(tmp_path / "single.safetensors")]
    found += [torch.load(tmp_path / "hat.pth.tar", weights_only=True)["state_dict"]]
    found += [Checkpoint.load(run).weights]
    for one in found:
        assert one.keys() == whole.keys()
        assert all(torch.equal(one[name], tensor) for name, tensor in whole.items())
    assert len(InitFrom(run)(Net()).loaded) == len(whole)


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
