"""``Predictions`` that were ended, by whatever it was, go on and end with the same files."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
from disk import FaultyOs, Killed
from killing import killed
from predicting import DATA, Ends, Keeps, by_two, files, predicted, trainer_of

sys.path.pop(0)

from hatbus.data import loader
from hatbus.errors import SaveError
from hatbus_checkpoint import Predictions, durable, output_files

FORMATS = ["jsonl", "safetensors"]


class Noisy(Keeps):
    """Draws random numbers in eval mode too."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.one + torch.rand(inputs.shape)


class Drawn(torch.utils.data.Dataset):
    """Samples that are drawn when they are read."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> torch.Tensor:
        return DATA[index][0] + torch.rand(3)


LOADERS = {
    "hatbus": by_two,
    "torch": lambda: DataLoader(Drawn(), 2, shuffle=True),
    "list": lambda: list(DATA.tensors[0].split(2)),
}


@pytest.mark.parametrize(
    ("kind", "data", "batch"),
    [
        ("jsonl", "hatbus", 0),
        ("jsonl", "torch", 3),
        ("jsonl", "list", 5),
        ("safetensors", "hatbus", 5),
        ("safetensors", "torch", 5),
        ("safetensors", "list", 3),
    ],
)
def test_a_killed_prediction_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, kind: str, data: str, batch: int
) -> None:
    predicted(tmp_path / "whole", LOADERS[data](), model=Noisy(), format=kind)
    here = tmp_path / "killed"
    killed(lambda: predicted(here, LOADERS[data](), Ends(batch), model=Noisy(), format=kind))
    rest = predicted(here, LOADERS[data](), model=Noisy(), format=kind)
    assert files(here) == files(tmp_path / "whole")
    assert len(rest) <= 6


def test_an_interrupted_one_goes_on_behind_its_last_batch(tmp_path: Path, caplog: Any) -> None:
    whole = predicted(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path / "it", None, Ends(4, KeyboardInterrupt()))
    assert set(files(tmp_path / "it")) == {"predictions.json", "predictions.jsonl.part"}
    caplog.set_level(logging.INFO, "hatbus")
    rest = predicted(tmp_path / "it")
    assert "8 samples are in" in caplog.text
    assert all(map(torch.equal, rest, whole[4:]))
    assert files(tmp_path / "it") == files(tmp_path / "whole")


def test_one_that_is_left_early_goes_on(tmp_path: Path) -> None:
    predicted(tmp_path / "whole")
    outputs = trainer_of(Predictions(tmp_path / "it", shard_size=3)).predict(by_two())
    next(outputs), next(outputs)
    outputs.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(predicted(tmp_path / "it")) == 4
    assert files(tmp_path / "it") == files(tmp_path / "whole")


def test_a_whole_one_is_not_done_again(tmp_path: Path) -> None:
    predicted(tmp_path)
    before = files(tmp_path)
    assert predicted(tmp_path) == []
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("jsonl", "kill"), ("jsonl", "ENOSPC"), ("jsonl", "short"), ("safetensors", "kill")],
)
def test_a_fault_at_any_call_costs_nothing_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    monkeypatch.setattr(output_files, "_SECONDS", 0.0)  # progress after every batch
    data = lambda: DataLoader(TensorDataset(DATA.tensors[0][:5]), 2)  # noqa: E731
    predicted(tmp_path / "whole", data(), format=kind, shard_size=1)
    whole, at = files(tmp_path / "whole"), 0
    while True:
        here, disk = tmp_path / f"{at}", DeadOs(at, fault)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", disk)
            patch.setattr(output_files, "os", disk)
            try:
                predicted(here, data(), format=kind, shard_size=1)
            except (Killed, SaveError):
                assert fault != "short"
        assert whole_rows(here) <= whole_rows(tmp_path / "whole")
        predicted(here, data(), format=kind, shard_size=1)
        assert files(here) == whole, (at, disk.hit)
        if disk.count <= at:
            break
        at += 1 if fault == "kill" else 3
    assert at > 20


class DeadOs(FaultyOs):
    """A dead process cuts nothing off either."""

    def __getattr__(self, name: str) -> Any:
        if name == "ftruncate" and self.dead:
            raise Killed
        return super().__getattr__(name)


def whole_rows(folder: Path) -> set[bytes]:
    """The rows that are written as far as the progress says; each can be read."""
    try:
        progress = json.loads((folder / "predictions.json").read_text())
    except FileNotFoundError:
        return set()
    shards = [load_file(folder / n) for n in progress["files"] if n.endswith("safetensors")]
    if shards:
        return {bytes([i]) + row.numpy().tobytes() for s in shards for i, row in _pairs(s)}
    name = next((p for p in folder.glob("predictions.jsonl*")), None)
    text = name.read_bytes()[: progress["bytes"]] if name else b""
    found = text.splitlines(keepends=True)
    assert len(found) == progress["samples"]
    assert all(json.loads(line) for line in found)
    return set(found)


def _pairs(shard: dict[str, torch.Tensor]) -> Any:
    return zip(shard["index"].tolist(), shard["output"], strict=True)


FULL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_predictions_go_on import FORMATS, Path, big, predicted
from hatbus.errors import SaveError
from hatbus_checkpoint import output_files
output_files._SECONDS = 0
for kind in FORMATS:
    try:
        predicted(Path(sys.argv[2]) / kind, big(), format=kind, shard_size=64)
    except SaveError as error:
        print(error)
"""
MOUNTED = """
mount -t tmpfs -o size={size}k,mode=777 tmpfs {disk} || exit 99
{command}
cp -r {disk} {saved}
"""


def big() -> Any:
    inputs = torch.randn(1000, 3, generator=torch.Generator().manual_seed(1))
    return loader(TensorDataset(inputs), 8, shuffle=False)


def test_a_disk_that_is_really_full_is_told_and_with_room_it_goes_on(tmp_path: Path) -> None:
    disk, saved = tmp_path / "disk", tmp_path / "saved"
    disk.mkdir()
    words = [sys.executable, "-W", "ignore", "-c", FULL, Path(__file__).parent, disk]
    command = shlex.join(map(str, words))
    script = MOUNTED.format(size=48, disk=disk, command=command, saved=saved)
    unshared = ["unshare", "-rm", "sh", "-c", script]
    ran = subprocess.run(unshared, capture_output=True, text=True, check=False)
    if not saved.exists():
        pytest.skip(f"no file system can be mounted here: {ran.stderr}")
    told = "No space left on device; what was written before is good: make room"
    assert ran.stdout.count(told) == 2, ran.stdout + ran.stderr
    assert 0 < len(whole_rows(saved / "jsonl")) < 1000
    for kind in FORMATS:
        options = {"format": kind, "shard_size": 64}
        predicted(saved / kind, big(), **options)
        predicted(tmp_path / kind, big(), **options)
        assert files(saved / kind) == files(tmp_path / kind)
