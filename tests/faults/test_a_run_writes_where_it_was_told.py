"""``~`` and relative paths: the place that they meant when the run was started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl, plugin
from hatbus.callbacks import Checkpoint, CsvLog, JsonlLog, SaveTraced, TensorBoard, Validation
from hatbus.cli import main
from hatbus.errors import JobError

torch.set_num_threads(1)
TRAIN = """
import os, torch

def build(folder: str):
    os.chdir(folder)
    model = torch.nn.Linear(2, 1)
    data = [(torch.ones(2, 2), torch.ones(2, 1))] * 2
    return model, torch.optim.SGD(model.parameters(), lr=0.1), data, torch.nn.functional.mse_loss
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 2
resume = "auto"
args = {{ folder = "elsewhere" }}
run_dir = "{0}"
name = "run"
[plugins.checkpoint]
[plugins.jsonl_log]
[plugins.csv_log]
path = "{0}/log.csv"
[plugins.tensorboard]
save_dir = "{0}/tb"
"""


@plugin(stage="setup")
class Moves:
    """Changes the folder at the beginning, and in every step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @hookimpl
    def on_loop_begin(self) -> None:
        os.chdir(self.folder / "elsewhere")

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        os.chdir(self.folder / ("elsewhere" if global_step_id % 2 else "."))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, the user's own, and one with another inside."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def written(folder: Path) -> set[str]:
    """Files and checkpoints, without what is different each time."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_dir() or path.suffix in {".csv", ".jsonl", ".log", ".json", ".pt"}
    }


@pytest.mark.parametrize("place", ["w", "./w", "~/w"])
def test_every_plugin_writes_in_one_place_whatever_the_run_makes_of_the_folder(
    folder: Path, place: str
) -> None:
    model = nn.Linear(2, 1)
    data = [(torch.ones(2, 2), torch.ones(2, 1))] * 2
    profiler = {"trace_dir": f"{place}/profile", "wait": 0, "warmup": 1, "active": 1}
    plugins: dict[str, Any] = {
        "moves": Moves(folder),
        "validation": Validation(data, callbacks=[JsonlLog()], profiler=profiler),
        "checkpoint": Checkpoint(f"{place}/c", save_hash=False),
        "jsonl": JsonlLog(),
        "csv": CsvLog(f"{place}/log.csv"),
        "board": TensorBoard(f"{place}/tb"),
        "traced": SaveTraced(f"{place}/pt", (torch.ones(1, 2),), save_hash=False),
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.mse_loss
    trainer = Trainer(model, optimizer, data, loss, plugins, run_dir=place, run_name="run")
    trainer.fit(num_epochs=2)
    os.chdir(folder)
    found = written(folder / "w")
    assert {
        "run/log.jsonl",
        "run/val/log.jsonl",
        "log.csv",
        "tb",
        "profile",
        "pt/deploy-checkpoint-last.pt",
        "c/checkpoint-epoch-0002",
    } <= found
    assert {path.name for path in folder.iterdir()} == {"elsewhere", "w"}
    assert not list((folder / "elsewhere").iterdir())


@pytest.mark.parametrize("place", ["w", "~/w"])
def test_a_run_is_resumed_from_the_place_that_was_meant(folder: Path, place: str) -> None:
    def fit(epochs: int, resume: str | None) -> Any:
        os.chdir(folder)
        model = nn.Linear(2, 1)
        data = [(torch.ones(2, 2), torch.ones(2, 1))] * 2
        plugins = [Moves(folder), Checkpoint(f"{place}/c", resume=resume, save_hash=False)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(model, optimizer, data, nn.functional.mse_loss, plugins).fit(epochs)

    fit(2, None)
    assert fit(2, f"{place}/c").position.global_step == 4
    assert fit(2, "auto").began_at == 4
    assert fit(3, f"{place}/c/checkpoint-epoch-0001").began_at == 2
    assert fit(3, f"{place}/c/last").began_at == 6


@pytest.mark.parametrize("place", ["w", "~/w"])
def test_a_jobs_paths_start_where_it_was_started(folder: Path, place: str) -> None:
    (folder / "train.py").write_text(TRAIN)
    (folder / "job.toml").write_text(JOB.format(place))
    assert main(["run", "job.toml"]) == 0
    assert {"run/log.jsonl", "run/run.log", "run/checkpoint", "log.csv", "tb"} <= written(
        folder / "w"
    )
    assert not list((folder / "elsewhere").iterdir())
    os.chdir(folder)
    assert main(["resume", "w/run", "-o", "run.num_epochs=3"]) == 0
    assert list((folder / "w/run/checkpoint").glob("checkpoint-epoch-0003*"))
    assert {path.name for path in folder.iterdir() if not path.name.startswith("__")} == {
        "elsewhere",
        "job.toml",
        "train.py",
        "w",
    }


def test_a_user_that_is_not_there_is_said_so() -> None:
    with pytest.raises(JobError, match=r"csv_log: path is '~nobody-here/x'; accepted: a path;"):
        CsvLog("~nobody-here/x")
