"""Callbacks of other trainers, named in a job: `tox -e hosts`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import host_loops as loops
import pytest

STEPS = loops.STEPS

BUILD = """
import host_loops as loops


def build():
    model = loops.new_model()
    return {"model": model, "optimizer": loops.new_optimizer(model), "data": loops.new_loader()}


def loader():
    return loops.new_loader(8)
"""
JOB = """
[run]
entry = "build.py:build"
num_epochs = {epochs}
device = "cpu"
[plugins.validation]
data_loader = {{ call = "build.py:loader" }}
[plugins.checkpoint]
save_dir = "saved"
[plugins.stop]
use = "transformers:EarlyStoppingCallback"
early_stopping_patience = 3
training_arguments = {arguments}
[plugins.rates]
use = "pytorch_lightning.callbacks:LearningRateMonitor"
logging_interval = "step"
[plugins.jsonl_log]
path = "log.jsonl"
"""
ARGUMENTS = "{ eval_strategy = 'epoch', metric_for_best_model = 'loss', greater_is_better = true }"


def job(folder: Path, epochs: int, more: str = "", **changes: str) -> Path:
    (folder / "build.py").write_text(BUILD)
    values: Mapping[str, Any] = {"epochs": epochs, "arguments": ARGUMENTS, **changes}
    path = folder / "job.toml"
    path.write_text(JOB.format(**values) + more)
    return path


def ran(path: Path, *words: str) -> int:
    from hatbus.cli import main

    try:
        return int(main(["run", str(path), *words]) or 0)
    except SystemExit as left:
        return int(left.code or 0)


def test_callbacks_are_named_in_a_job_and_their_state_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ran(job(tmp_path, 2)) == 0
    assert ran(job(tmp_path, 9), "-o", "run.resume=last") == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("lr-SGD" in row for row in rows)
    last = max(row["step"] for row in rows)
    assert 2 * STEPS < last + 1 < 9 * STEPS


def test_an_option_that_the_callback_does_not_have_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = ran(job(tmp_path, 2), "-o", "stop.early_stoping_patience=2")
    assert code == 2
    assert "did you mean 'early_stopping_patience'" in capsys.readouterr().err
