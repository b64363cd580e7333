"""A run that is told to go on, and could not, says so before it trains or makes a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_trainer

from hatbus.cli import main
from hatbus.errors import JobError

JOB = """
[run]
entry = "train.py:build"
num_epochs = 1
"""
TRAIN = """
import torch

def build():
    raise SystemExit("it was built")
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAIN)
    Path("job.toml").write_text(JOB)
    return "job.toml"


@pytest.mark.parametrize("wanted", ["auto", "last", "elsewhere"])
def test_a_job_that_resumes_has_a_plugin_that_loads(
    job: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", job, "-o", f"run.resume={wanted}"]) == 2
    said = capsys.readouterr().err
    assert f"key 'resume' is {wanted!r} in job.toml [run]: no plugin of this run loads" in said
    assert "-p checkpoint" in said
    assert not Path("runs").exists()


def test_an_empty_value_is_no_value(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("resume", "run_dir", "init_from"):
        assert main(["run", job, "-p", "checkpoint", "-o", f'run.{key}=""']) == 2
        assert f"key {key!r} is empty in job.toml [run]; give it" in capsys.readouterr().err


def test_a_trainer_that_resumes_has_a_plugin_that_loads() -> None:
    with pytest.raises(JobError, match=r"resume is 'auto', and no plugin of this run loads"):
        tiny_trainer(resume="auto").fit(num_epochs=1)
    with pytest.raises(JobError, match="resume is ''; accepted: a path"):
        tiny_trainer(resume="")
    tiny_trainer(resume="new").fit(num_epochs=1)
