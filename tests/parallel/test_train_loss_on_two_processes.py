"""The training loss is that of the samples of all ranks, and a slip is told on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from two_processes import run_on_two

from hatbus import Trainer, hookimpl
from hatbus.callbacks import EarlyStopping, Validation
from hatbus.data import loader
from hatbus.errors import JobError

INPUTS = torch.arange(24.0).reshape(24, 1)
RUNS = """
import json, sys
import test_train_loss_on_two_processes as here

here.torch.set_num_threads(1)
rank = int(sys.argv[1])
seen = {"published": here.published(), "refused": here.refused()}
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


class Heard:
    def __init__(self) -> None:
        self.found: list[list[Any]] = []

    @hookimpl
    def on_log(self, logs: dict[str, Any], global_step_id: int) -> None:
        self.found += [[global_step_id, name, float(value)] for name, value in logs.items()]


def trainer(*plugins: object) -> Trainer:
    """A model that stays at zero: the loss of a sample is the square of its number."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = loader(TensorDataset(INPUTS, INPUTS), 2, shuffle=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = nn.functional.mse_loss
    return Trainer(model, optimizer, data, loss, plugins, log_every=4, device="cpu")


def published() -> list[list[Any]]:
    heard = Heard()
    trainer(heard).fit(num_epochs=1)
    return heard.found


def refused() -> str:
    try:
        trainer(Validation([(INPUTS, INPUTS)]), EarlyStopping("val/los")).fit(num_epochs=1)
    except JobError as error:
        return str(error)
    return ""


def test_both_ranks_publish_the_mean_over_all_samples(tmp_path: Path, checkout: Path) -> None:
    one, other = run_on_two(RUNS, tmp_path, checkout)
    assert one == other
    squares = INPUTS.flatten() ** 2
    assert one["published"] == [
        [3, "train/loss_step", pytest.approx(float(squares[:16].mean()))],
        [5, "train/loss", pytest.approx(float(squares.mean()))],
    ]
    assert one["refused"].endswith("did you mean 'val/loss'?")
