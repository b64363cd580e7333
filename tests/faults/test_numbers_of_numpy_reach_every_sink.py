"""A metric that is published as numpy's scalar is in every file, table and choice."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint, CsvLog, JsonlLog, Progress, TorchLr
from hatbus.evaluation import scalars_of

BATCH = torch.ones(1, 1), torch.ones(1, 1)
KINDS: dict[str, Callable[[float], Any]] = {
    "float32": np.float32,
    "float16": np.float16,
    "int64": np.int64,
    "0-d": np.array,
    "one element": lambda value: np.array([value]),
}


class Publishes:
    """A score of 4 in epoch 0, 5 in epoch 1."""

    def __init__(self, kind: Callable[[float], Any]) -> None:
        self.kind = kind

    @hookimpl
    def on_epoch_end(self, ctx: Any, epoch_id: int) -> None:
        ctx.log({"val/score": self.kind(4.0 + epoch_id)})


@pytest.mark.parametrize("kind", KINDS)
def test_every_sink_has_it(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.nn.Linear(1, 1)
    plugins = [
        Publishes(KINDS[kind]),
        CsvLog(tmp_path / "log.csv"),
        JsonlLog(tmp_path / "log.jsonl"),
        Progress(display="plain"),
        Checkpoint(tmp_path / "c", mode="max", monitor_metric_key="val/score", save_hash=False),
        TorchLr("ReduceLROnPlateau", {"patience": 1}, "epoch", metric="val/score"),
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ctx = Trainer(model, optimizer, [BATCH] * 2, torch.nn.functional.mse_loss, plugins).fit(2)
    assert dict(scalars_of(ctx))["val/score"] == 5
    with (tmp_path / "log.csv").open() as file:
        assert [float(row["val/score"]) for row in csv.DictReader(file) if row["val/score"]] == [
            4,
            5,
        ]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["val/score"] for line in lines if "val/score" in line] == [4, 5]
    manifest = json.loads((tmp_path / "c/checkpoint-epoch-0002/MANIFEST.json").read_text())
    assert (manifest["metrics"]["val/score"], manifest["best"]["value"]) == (5, 5)
    assert "val/score 5" in capsys.readouterr().err
