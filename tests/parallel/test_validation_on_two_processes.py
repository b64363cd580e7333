"""Validation over two ranks: every sample once, the metrics of one process, the same decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batches
from two_processes import run_on_two

SIZES = ("1", "2", "4")
VALIDATES = """
import json, sys
import torch
from torch.utils.data import TensorDataset
from hatbus import hookimpl
from hatbus.callbacks import EarlyStopping, MetricUpdater, Validation
from hatbus.data.loaders import loader
from tiny import batches, tiny_trainer, weights

torch.set_num_threads(1)
rank, seen = int(sys.argv[1]), {}
inputs = torch.cat([x for x, _ in batches(3, seed=9)])[:11]
data = TensorDataset(inputs, inputs.sum(1, keepdim=True))


class Sees:
    def __init__(self):
        self.rows, self.sizes = [], []

    @hookimpl
    def on_batch_end(self, batch):
        self.sizes.append(len(batch[0]))
        self.rows += batch[0][:, 0].tolist()


def positive(metrics, batch, model_outs):
    metrics["positive"].update(model_outs[:, 0] > 0, batch[1][:, 0] > 0)


for size in (1, 2, 4):
    sees = Sees()
    metric = MetricUpdater(positive, {"positive": "accuracy"})  # by default in every step too
    validations = {
        "losses": Validation(loader(data, size), val_interval=3, interval_by="step"),
        "metrics": Validation(loader(data, size), callbacks=[metric, sees]),
    }
    trainer = tiny_trainer(validations, batches(4, seed=rank))
    trainer.fit(num_epochs=1)
    fitted = list(sees.rows)
    sees.rows.clear()
    aside = trainer.validate()
    given = TensorDataset(inputs)
    predicted = torch.cat(list(trainer.predict(loader(given, size, shuffle=False)))).tolist()
    own = torch.nn.Linear(3, 1)
    own.load_state_dict(trainer.ctx.model.state_dict())
    seen[size] = {
        "predicted": predicted,
        "by torch": own(inputs).tolist(),
        "aside": aside,
        "rows aside": sees.rows,
        "rows": fitted,
        "sizes": sees.sizes,
        "latest": {name: float(value) for name, value in trainer.ctx.latest.items()},
        "weights": weights(trainer).tolist(),
    }
normed = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
run = [Validation(loader(data, 2))]
trainer = tiny_trainer(run, batches(4, seed=rank), model=normed)
trainer.fit(num_epochs=2)
seen["normed"] = {
    "loss": float(trainer.ctx.latest["val/loss"]),
    "state": {name: value.tolist() for name, value in normed.state_dict().items()},
}
stopping = EarlyStopping("val/loss", patience=2, min_delta=1e9)
trainer = tiny_trainer([Validation(loader(data, 2)), stopping], batches(4, seed=rank))
trainer.fit(num_epochs=20)
seen["stopped after"] = trainer.ctx.position.global_step
seen["validated after"] = trainer.bus.members["validation"].plugin.validated_at
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What the two ranks wrote down."""
    return run_on_two(VALIDATES, tmp_path_factory.mktemp("ranks"), checkout)


def held_out() -> torch.Tensor:
    """The eleven rows that are validated."""
    return torch.cat([x for x, _ in batches(3, seed=9)])[:11]


@pytest.mark.parametrize("size", SIZES)
def test_every_sample_is_validated_once_over_both_ranks(ranks: Any, size: str) -> None:
    first, second = (seen[size] for seen in ranks)
    assert sorted(first["rows"] + second["rows"]) == sorted(held_out()[:, 0].tolist())
    assert (len(first["rows"]), len(second["rows"])) == (6, 5)
    if size != "1":
        assert len(first["sizes"]) == len(second["sizes"])


@pytest.mark.parametrize("size", SIZES)
def test_every_sample_is_predicted_once_over_both_ranks(ranks: Any, size: str) -> None:
    first, second = (seen[size] for seen in ranks)
    both = sorted(one for (one,) in first["predicted"] + second["predicted"])
    assert both == pytest.approx(sorted(one for (one,) in first["by torch"]), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_beside_a_training_both_ranks_validate_the_same_way(ranks: Any, size: str) -> None:
    first, second = (seen[size] for seen in ranks)
    assert sorted(first["rows aside"] + second["rows aside"]) == sorted(held_out()[:, 0].tolist())
    assert first["aside"] == second["aside"]
    assert first["aside"].items() <= first["latest"].items()
    assert len(first["aside"]) > 1


@pytest.mark.parametrize("size", SIZES)
def test_metrics_are_those_of_all_samples_at_once(ranks: Any, size: str) -> None:
    first, second = (seen[size] for seen in ranks)
    assert first["latest"] == second["latest"]
    assert first["weights"] == second["weights"]
    inputs, vector = held_out(), torch.tensor(first["weights"])
    outs, target = inputs @ vector[:3] + vector[3], inputs.sum(1)
    assert first["latest"]["val/loss"] == pytest.approx(float((outs - target).square().mean()))
    right = float(((outs > 0) == (target > 0)).double().mean())
    assert first["latest"]["val/metrics/positive"] == pytest.approx(right)


def test_both_ranks_stop_early_after_the_same_step(ranks: Any) -> None:
    first, second = (seen["stopped after"] for seen in ranks)
    assert first == second
    assert [seen["validated after"] for seen in ranks] == [first, first]  # the end of the run too
    assert 12 <= first <= 13  # asked for after the third epoch of 4 steps


def test_statistics_of_rank_0_are_validated_and_each_rank_keeps_its_own(ranks: Any) -> None:
    first, second = (seen["normed"] for seen in ranks)
    assert first["loss"] == second["loss"]
    assert first["state"]["0.running_mean"] != second["state"]["0.running_mean"]
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)).eval()
    model.load_state_dict({n: torch.tensor(v) for n, v in first["state"].items()})
    with torch.no_grad():
        errors = model(held_out())[:, 0] - held_out().sum(1)
    assert first["loss"] == pytest.approx(float(errors.square().mean()), rel=1e-5)
