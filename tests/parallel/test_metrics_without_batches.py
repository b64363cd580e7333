"""A task without a batch in an epoch, or a loss that one rank has not met: on two processes as on
one nothing is published of what nobody has, and the rest is the mean over all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from two_processes import run_on_two

from hatbus import BatchProcessor, Trainer, hookimpl
from hatbus.callbacks import EarlyStopping, MetricUpdater, Validation
from hatbus.data import WeightedTasks, loader
from hatbus_monitor.update_functions import usual

RUNS = """
import json, sys
import test_metrics_without_batches as here

here.torch.set_num_threads(1)
rank = int(sys.argv[1])
seen = {"rare": here.rare(2), "losses": here.losses(rank)}
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


class Published:
    """The values of one name, by the step in which they were published."""

    def __init__(self, start: str) -> None:
        self.start, self.found = start, []

    @hookimpl
    def on_log(self, logs: Any, global_step_id: int) -> None:
        for name, value in logs.items():
            if name.startswith(self.start):
                self.found.append([global_step_id, name, float(value)])


def rare(size: int) -> list[Any]:
    """What is published of a task that is chosen in every 50th step, in ten epochs of 20."""
    torch.manual_seed(0)
    model, published = nn.Linear(2, 1), Published("train/rare/loss")
    samples = TensorDataset(torch.ones(80, 2), torch.ones(80, 1))
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), 0.001),
        {"a": loader(samples, size), "rare": loader(samples, size)},
        nn.functional.mse_loss,
        [published, EarlyStopping("train/rare/loss", patience=100)],
        task_sampler=WeightedTasks({"a": 50.0, "rare": 1.0}, steps=20),
    )
    updater = MetricUpdater(usual, ["loss"], step_log_freq=0)
    trainer.bus.register(updater, "rare_metrics", overrides={"tasks": ["rare"]})
    ctx = trainer.fit(num_epochs=10)
    return [ctx.position.epoch, published.found]


class ByRank:
    """A loss of each rank's own, beside one that all have; a batch without a sample has none."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, outs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        error = (outs - target).square().mean()
        return {"all": error * 0 + self.rank + 1, f"of_{self.rank}": error * 0 + 7}


def losses(rank: int) -> list[Any]:
    """What a validation publishes of them."""
    torch.manual_seed(0)
    model, published = nn.Linear(2, 1), Published("val/")
    samples = TensorDataset(torch.ones(8, 2), torch.ones(8, 1))
    validation = Validation(
        loader(samples, 2), BatchProcessor(ByRank(rank), need_grad_update=False)
    )
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), 0.001),
        loader(samples, 2),
        nn.functional.mse_loss,
        [published, validation],
    )
    trainer.fit(num_epochs=1)
    return published.found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What was published on the two processes."""
    return run_on_two(RUNS, tmp_path_factory.mktemp("metrics"), checkout)


def test_an_epoch_without_a_batch_of_a_task_publishes_nothing_and_stops_nothing(
    ranks: Any,
) -> None:
    epochs, alone = rare(4)
    assert (epochs, len(alone)) == (10, 5)
    for seen in ranks:
        assert seen["rare"][0] == 10
        for mine, other in zip(seen["rare"][1], alone, strict=True):
            assert mine[:2] == other[:2]
            assert math.isclose(mine[2], other[2], rel_tol=1e-5)


def test_a_loss_that_one_rank_has_not_met_is_the_mean_over_those_that_have(ranks: Any) -> None:
    for seen in ranks:
        found = {name: value for _, name, value in seen["losses"]}
        assert found == {"val/all": 1.5, "val/of_0": 7.0, "val/of_1": 7.0}
