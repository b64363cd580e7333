"""A job's entry function may return modules beside the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from hatbus.cli import main

ENTRY = """
import torch

def build():
    model, critic = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *critic.parameters()], lr=0.1)
    loss = lambda outs, target: {"task": (outs - target).square().mean(), "c": JUDGE(outs).mean()}
    data = [(torch.ones(1, 1), torch.ones(1, 1))]
    return {"model": model, "optimizer": optimizer, "data": data, "loss": loss, **MORE}
"""
JOB = """
[run]
entry = "entry.py:build"
num_epochs = 1
run_dir = "."
name = "out"
[plugins.checkpoint]
"""


@pytest.mark.parametrize("is_named", [True, False])
def test_modules_that_an_entry_returns_are_saved(
    is_named: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    more = '"modules": {"critic": critic}' if is_named else ""
    text = ENTRY.replace("**MORE", more).replace(
        "JUDGE", "critic.forward" if is_named else "(lambda x: x)"
    )
    (tmp_path / "entry.py").write_text(text)
    (tmp_path / "job.toml").write_text(JOB)
    assert main(["run", "job.toml"]) == 0
    (saved,) = (tmp_path / "out" / "checkpoint").glob("checkpoint-*/")
    names = [sorted(load_file(path)) for path in saved.glob("beside.safetensors")]
    assert names == ([["critic.bias", "critic.weight"]] if is_named else [])
    said = capfd.readouterr().err
    assert ("trains 2 parameters (of shape (1, 1), (1,)) that are neither" in said) != is_named
