"""``hatbus predict`` on two processes: every sample once, in the order of the data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from two_processes import run_on_two

from hatbus.cli import main

PREDICTS = """
import contextlib, io, json, sys
import torch
from hatbus import hookimpl
from hatbus.cli import main

torch.set_num_threads(1)
rank, told, codes = int(sys.argv[1]), io.StringIO(), []
with contextlib.redirect_stdout(told):
    for name in ("ours", "by_four", "shuffled", "torchs", "shared", "one", "few"):
        for form in ("jsonl", "safetensors"):
            out = ["--out", f"both/{name}-{form}", "--format", form, "--quiet"]
            option = ["-o", f"predictions.data_loader=@{name}", "-o", "predictions.shard_size=3"]
            codes.append(main(["predict", "runs/it", *out, *option]))
with open(f"rank-{rank}.json", "w") as file:
    json.dump({"codes": codes, "told": told.getvalue()}, file)
"""
TRAIN = """
import os
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from hatbus.data import loader

def build():
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(9, 3)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    sampler = DistributedSampler(data, world, rank, shuffle=False)
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "data": loader(data, 3),
        "loss": torch.nn.functional.mse_loss,
        "ours": loader(data, 2, shuffle=False),
        "by_four": loader(data, 4, shuffle=False),
        "shuffled": loader(data, 2),
        "torchs": DataLoader(data, 2),
        "shared": DataLoader(data, 2, sampler=sampler),
        "one": loader(data, 1, shuffle=False),
        "few": loader(TensorDataset(inputs[:1]), 4, shuffle=False),
    }
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 1
run_dir = "runs/it"
[plugins.checkpoint]
"""


def rows(folder: Path) -> list[tuple[int, float]]:
    from safetensors.torch import load_file

    if folder.name.endswith("jsonl"):
        text = (folder / "predictions.jsonl").read_text().splitlines()
        return [(row["index"], row["output"][0]) for row in map(json.loads, text)]
    found = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    parts = [(f["index"].tolist(), f["output"].tolist()) for f in found]
    return [(i, x) for part in parts for i, [x] in zip(*part, strict=True)]


def test_every_sample_is_written_once_and_in_order(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "job.toml").write_text(JOB)
    assert main(["run", "job.toml", "--quiet"]) == 0
    assert main(["predict", "runs/it", "-o", "predictions.data_loader=@ours"]) == 0
    capsys.readouterr()
    alone = [json.loads(s) for s in Path("predictions/predictions.jsonl").read_text().splitlines()]
    first, second = run_on_two(PREDICTS, tmp_path, checkout)
    assert (set(first["codes"]), set(second["codes"]), second["told"]) == ({0}, {0}, "")
    for folder in sorted(Path("both").iterdir()):
        found = rows(folder)
        if folder.name.startswith("shuffled"):
            assert [place for place, _ in found] != [*range(9)]
            found = sorted(found)
        expected = alone[:1] if folder.name.startswith("few") else alone
        assert [place for place, _ in found] == [row["index"] for row in expected], folder
        values = [row["output"][0] for row in expected]
        assert [value for _, value in found] == pytest.approx(values, rel=1e-6), folder
