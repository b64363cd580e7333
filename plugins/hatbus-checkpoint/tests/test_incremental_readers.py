"""Commands, other trainings and other tools read checkpoints that share files as any other."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hatbus_checkpoint import Checkpoint, InitFrom, listing, manifest, weights_of
from hatbus_checkpoint.exchange import to_hat, to_single
from hatbus_checkpoint.folder import entry_of
from hatbus_checkpoint.restore import Saved
from hatbus_checkpoint.unchanged import unchanged

sys.path.insert(0, str(Path(__file__).parent))
from fine_tuning import Net, fine_tuning, newest_first

sys.path.pop(0)


@pytest.fixture(autouse=True)
def _small_files_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "LEAST", 64)


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
