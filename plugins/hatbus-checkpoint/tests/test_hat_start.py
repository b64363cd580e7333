"""A run that starts from HAT's file takes its weights, and its optimizer only when asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import CheckpointError
from hatbus_checkpoint import Checkpoint


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file at the end of a schedule: lr 0, initial_lr 0.4."""
    old = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(old.parameters(), lr=0.4, momentum=0.9)
    old(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0].update(initial_lr=0.4, lr=0.0)
    whole = {"epoch": 239, "step": 9, "state_dict": old.state_dict()}
    torch.save({**whole, "optimizer": optimizer.state_dict()}, tmp_path / "best.pth.tar")
    torch.save(whole, tmp_path / "weights.pth.tar")
    return tmp_path / "best.pth.tar"


class Begin:
    """Notes the weights and momentum that the first step starts from."""

    @hookimpl
    def on_step_begin(self, model: Any, optimizer: Any, global_step_id: int) -> None:
        if global_step_id == 0:
            self.weight = model.weight.detach().clone()
            self.group = dict(optimizer.param_groups[0])
            state = optimizer.state.get(model.weight, {})
            self.state = {name: value.clone() for name, value in state.items()}


def start(path: Path, **options: Any) -> Begin:
    model, begin = nn.Linear(3, 1), Begin()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.5, weight_decay=1e-4)
    listed = [begin, Checkpoint(str(path.parent / "ck"), resume=str(path), **options)]
    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 2
    Trainer(model, optimizer, data, nn.functional.mse_loss, listed).fit(num_epochs=1)
    return begin


def test_only_the_weights_are_taken_and_that_is_said(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hatbus"):
        begin = start(file)
    assert begin.weight.equal(torch.load(file)["state_dict"]["weight"])
    assert (begin.group["lr"], begin.group["momentum"]) == (0.001, 0.5)
    assert begin.state == {}
    assert "its optimizer is left out (lr 0.4); checkpoint's option hat_opt" in caplog.text


def test_the_optimizer_is_taken_when_asked_and_what_it_changes_is_said(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin = start(file, hat_optimizer=True)
    assert (begin.group["lr"], begin.group["momentum"]) == (0.0, 0.9)
    assert begin.state["momentum_buffer"].equal(
        torch.load(file)["optimizer"]["state"][0]["momentum_buffer"]
    )
    assert "lr 0.001 -> 0.4, momentum 0.5 -> 0.9, weight_decay 0.0001 -> 0" in caplog.text


def test_an_overridden_option_stays_the_runs(file: Path) -> None:
    begin = start(file, hat_optimizer=True, override=["optimizer.lr"])
    assert (begin.group["lr"], begin.group["initial_lr"], begin.group["momentum"]) == (
        0.001,
        0.001,
        0.9,
    )
    assert "momentum_buffer" in begin.state


def test_an_optimizer_that_is_not_there_or_does_not_fit_is_refused(file: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no optimizer; leave out hat_optimizer"):
        start(file.with_name("weights.pth.tar"), hat_optimizer=True)
    start(file.with_name("weights.pth.tar"))
    found = torch.load(file)
    found["optimizer"]["param_groups"] *= 2
    torch.save(found, file)
    with pytest.raises(CheckpointError, match=r"does not fit: .* parameter groups"):
        start(file, hat_optimizer=True)
