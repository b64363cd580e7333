"""``summarize`` and ``hatbus summary``: shapes of a real batch and times, and nothing touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import Trainer
from hatbus.cli import main
from hatbus.errors import JobError

torchinfo = pytest.importorskip("torchinfo")

from hatbus_model import summarize  # noqa: E402 - only where torchinfo is

JOB = """
import torch
from torch import nn

def build(width=5):
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.randn(7, 3), torch.randn(7, 1))] * 4
    return model, optimizer, data, nn.functional.mse_loss
"""


class TwoInputs(nn.Module):
    """Takes a mapping by keywords, as a Transformers model does, and gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(2, 4), nn.Linear(3, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.one(left) * self.other(right)).sum()}


def test_parameters_shapes_and_times_of_a_step() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    model[2].requires_grad_(False)
    data = [(torch.randn(7, 3), torch.randn(7, 1))] * 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, data, nn.functional.mse_loss, accumulate=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = summarize(trainer)
    assert (found.parameters, found.trainable) == (20 + 10 + 6, 20 + 10)
    assert found.samples in (7, 14)  # the last group of an epoch is a small one
    assert all(one >= 0 for one in found.parts.values())
    assert found.step > found.parts["forward"] + found.parts["backward"] > 0
    assert "[7, 3]" in found.table
    assert "BatchNorm1d" in found.table
    assert " ms (data " in str(found)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(not one._forward_pre_hooks for one in model.modules())


def test_a_model_that_takes_keywords() -> None:
    model = TwoInputs()
    data = [{"left": torch.randn(6, 2), "right": torch.randn(6, 3)}] * 2
    found = summarize(Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), data))
    assert "[6, 2]" in found.table
    assert "[6, 3]" in found.table
    assert found.samples == 6


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(JOB)
    Path("job.toml").write_text('[run]\nentry = "net.py:build"\nnum_epochs = 3\n')
    return tmp_path


def test_the_command_prints_a_table_or_json_and_writes_nothing(job: Path, capsys: Any) -> None:
    assert main(["summary", "job.toml", "-o", "run.args.width=6"]) == 0
    assert "Linear: 1-1" in capsys.readouterr().out
    assert main(["summary", "job.toml", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parameters"], found["trainable"], found["samples"]) == (36, 30, 7)
    assert not (job / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "1"], "num_steps is 1; accepted: a whole number of at least 2"),
        (["--depth", "0"], "depth is 0; accepted: a whole number of at least 1"),
        (["-o", "run.args.widht=2"], "unknown argument 'widht'"),
    ],
)
def test_a_mistake_is_one_line(job: Path, capsys: Any, words: list[str], message: str) -> None:
    assert main(["summary", "job.toml", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_torchinfo_it_says_what_to_install(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchinfo", None)
    model = nn.Linear(1, 1)
    data = [(torch.ones(1, 1), torch.ones(1, 1))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, data, nn.functional.mse_loss)
    with pytest.raises(JobError, match="python -m pip install torchinfo"):
        summarize(trainer)
