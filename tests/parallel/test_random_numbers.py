"""What each process of a run draws is its own, and a resume goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from two_processes import run_on_two

PLAY = """
import json, sys
import torch
from torch import distributed, nn
from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint, MetricUpdater
from hatbus_monitor.metrics import LossShow
from hatbus.rng import seed_all
from tiny import batches

torch.set_num_threads(1)
rank = int(sys.argv[1])
seen, calls = {}, []


class Masks(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.layer = nn.Dropout(0.5), nn.Linear(3, 1)

    def forward(self, inputs):
        self.mask = self.drop(torch.ones(4, 16)) != 0
        return self.layer(inputs) * self.mask.float().mean()


class Looks:
    def __init__(self):
        self.masks, self.first = [], None

    @hookimpl
    def on_loop_begin(self, model):
        self.first = model.layer.weight.flatten().tolist()

    @hookimpl
    def on_batch_end(self, model):
        self.masks.append(model.mask.flatten().int().tolist())


class Count:
    # collectives of a step that are waited for, the gradients' among them
    def __init__(self):
        self.per_step, self.kept = [], distributed.all_reduce

    @hookimpl
    def on_step_begin(self):
        calls.clear()

    @hookimpl(trylast=True)
    def on_step_end(self):
        self.per_step.append(len(calls))


def train(steps, *plugins):
    seed_all(3)
    model = Masks()
    looks = Looks()
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1), batches(4, seed=rank),
        nn.functional.mse_loss, plugins=[looks, *plugins],
    )
    trainer.fit(num_steps=steps)
    return looks, model


whole, model = train(6)
seen["masks"], seen["first"] = whole.masks, whole.first
seen["weights"] = model.layer.weight.flatten().tolist()
train(4, Checkpoint("saved", save_interval=None))
resumed, model = train(6, Checkpoint("saved", save_interval=None, resume="auto"))
seen["resumed"] = [resumed.masks, model.layer.weight.flatten().tolist()]


def update(metrics, batch, outs, losses):
    for metric in metrics:
        metric.update(losses["loss"])


real = distributed.all_reduce
distributed.all_reduce = lambda *a, **k: (calls.append(k.get("async_op")), real(*a, **k))[1]
count = Count()
metrics = [LossShow(f"m{n}") for n in range(5)]
metered, _ = train(
    6, MetricUpdater(metrics=metrics, metric_update_func=update, step_log_freq=1), count
)
distributed.all_reduce = real
seen["collectives"] = count.per_step
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What the two ranks wrote down."""
    return run_on_two(PLAY, tmp_path_factory.mktemp("random"), checkout)


def test_each_process_has_dropout_masks_of_its_own(ranks: Any) -> None:
    first, second = (seen["masks"] for seen in ranks)
    assert len(first) == 6
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_all_begin_and_end_with_the_same_weights(ranks: Any) -> None:
    assert ranks[0]["first"] == ranks[1]["first"]
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_a_resumed_process_goes_on_with_its_own_numbers(ranks: Any) -> None:
    for seen in ranks:
        assert seen["resumed"] == [seen["masks"][4:], seen["weights"]]


def test_all_metrics_of_a_step_take_one_exchange(ranks: Any) -> None:
    for seen in ranks:
        # in the first step the processes agree on what travels with the gradients
        assert seen["collectives"] == [3, 2, 2, 2, 2, 2]
