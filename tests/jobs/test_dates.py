"""Dates and times of TOML as arguments: the same in the run's ``job.json``, and when it resumes."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from hatbus.cli import main
from hatbus.jobs.job import read_job

ENTRY = """
import datetime, json
import torch

def build(day: datetime.date, at: datetime.datetime, zone, clock: datetime.time, days: list):
    seen = [repr(day), repr(at), repr(zone), repr(clock), repr(days)]
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps(seen) + chr(10))
    model = torch.nn.Linear(1, 1)
    data = [(torch.ones(1, 1), torch.ones(1, 1))]
    return model, torch.optim.SGD(model.parameters(), lr=0.1), data, torch.nn.functional.mse_loss
"""
JOB = """
[run]
entry = "entry.py:build"
num_epochs = 2
run_dir = "."
name = "out"
[run.args]
day = 2024-02-29
at = 2024-02-29T10:11:12.5
zone = 2024-02-29T10:11:12+01:00
clock = 23:59:58
days = [2024-01-01, { from = 2024-01-02 }]
[plugins.checkpoint]
"""


def test_a_run_with_dates_as_arguments_is_resumed_with_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "entry.py").write_text(ENTRY)
    (tmp_path / "job.toml").write_text(JOB)
    assert main(["run", "job.toml", "--quiet"]) == 0
    assert main(["resume", "out", "-o", "run.num_epochs=3", "--quiet"]) == 0
    first, second = map(json.loads, (tmp_path / "seen.jsonl").read_text().splitlines())
    assert first == second
    assert first[0] == "datetime.date(2024, 2, 29)"
    assert first[3] == "datetime.time(23, 59, 58)"
    args = read_job(tmp_path / "out" / "job.json").run.args
    assert args == read_job(tmp_path / "job.toml").run.args
    assert args["days"] == [datetime.date(2024, 1, 1), {"from": datetime.date(2024, 1, 2)}]
