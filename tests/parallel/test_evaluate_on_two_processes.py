"""``hatbus evaluate`` on two processes: every sample once, and one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from two_processes import run_on_two

from hatbus.cli import main

EVALUATES = """
import contextlib, io, json, sys
import torch
from hatbus.cli import main

torch.set_num_threads(1)
rank, told = int(sys.argv[1]), io.StringIO()
with contextlib.redirect_stdout(told):
    code = main(["evaluate", "runs/it", "--json"])
with open(f"rank-{rank}.json", "w") as file:
    json.dump({"code": code, "told": told.getvalue()}, file)
"""
TRAIN = """
import torch
from hatbus.data import loader

def build():
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(11, 3)
    data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "model": model,
        "optimizer": optimizer,
        "data": loader(data, 4),
        "loss": torch.nn.functional.mse_loss,
        "val_loader": loader(data, 2, shuffle=False),
    }
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 2
run_dir = "runs/it"
[plugins.validation]
data_loader = "@val_loader"
[plugins.checkpoint]
"""


def test_one_process_tells_what_both_have_found(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "job.toml").write_text(JOB)
    assert main(["run", "job.toml", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "runs/it", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    first, second = run_on_two(EVALUATES, tmp_path, checkout)
    assert (first["code"], second["code"], second["told"]) == (0, 0, "")
    both = json.loads(first["told"])
    assert both["checkpoint"] == alone["checkpoint"]
    assert both["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
