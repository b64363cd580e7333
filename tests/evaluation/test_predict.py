"""``trainer.predict()``: the model's outputs, batch by batch, and nothing else."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny import batches, tiny_trainer, weights

from hatbus import hookimpl
from hatbus.callbacks import ExponentialMovingAverage, Validation
from hatbus.data import loader
from hatbus.errors import DataError, JobError, PluginError

INPUTS = [inputs for inputs, _ in batches(3, seed=1)]


def by_torch(model: torch.nn.Module) -> list[torch.Tensor]:
    """What the model gives in eval mode."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        found = [model(inputs) for inputs in INPUTS]
    model.train(mode)
    return found


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether both hold the same tensors, bit for bit."""
    return len(one) == len(other) > 0 and all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    "data",
    [INPUTS, [(x, None) for x in INPUTS], [[x] for x in INPUTS], batches(3, seed=1)],
    ids=["inputs", "no target", "lists of one", "pairs"],
)
def test_outputs_are_those_of_the_model_in_eval_mode(data: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout(0.5))
    trainer = tiny_trainer(model=model)
    trainer.fit(num_epochs=1)
    found = list(trainer.predict(data))
    assert same(found, by_torch(model))
    assert not any(one.requires_grad for one in found)
    assert model.training


def test_averages_are_shown_unless_raw_weights_are_asked_for() -> None:
    average = ExponentialMovingAverage(decay=0.5, decay_base=0)
    trainer = tiny_trainer([average])
    trainer.fit(num_epochs=2)
    model = trainer.ctx.model
    assert same(list(trainer.predict(INPUTS, "raw")), by_torch(model))
    averaged = list(trainer.predict(INPUTS))
    assert not same(averaged, by_torch(model))
    model.load_state_dict(average.averages())
    assert same(averaged, by_torch(model))


def test_a_plugin_around_forward_takes_part() -> None:
    class Doubles:
        @hookimpl(wrapper=True)
        def forward(self) -> Any:
            outs = yield
            return outs * 2

    trainer = tiny_trainer([Doubles()])
    doubled = [2 * one for one in by_torch(trainer.ctx.model)]
    assert same(list(trainer.predict(INPUTS)), doubled)


def test_a_training_with_predictions_between_is_the_one_without() -> None:
    def trained(*, asks: bool) -> tuple[torch.Tensor, float, float]:
        data = loader(torch.utils.data.StackDataset(torch.randn(12, 3), torch.randn(12, 1)), 4)
        trainer = tiny_trainer(data=data)
        trainer.fit(num_steps=4)
        if asks:
            assert len(list(trainer.predict(data))) == 3
        trainer.fit(num_epochs=3)
        return weights(trainer), random.random(), float(torch.rand(()))

    torch.manual_seed(3), random.seed(3)
    one = trained(asks=False)
    torch.manual_seed(3), random.seed(3)
    other = trained(asks=True)
    assert torch.equal(one[0], other[0])
    assert one[1:] == other[1:]


def test_random_numbers_of_the_caller_between_two_outputs_are_the_callers() -> None:
    def drawn(*, predicts: bool) -> list[float]:
        torch.manual_seed(5)
        outs = tiny_trainer().predict(INPUTS) if predicts else INPUTS
        torch.manual_seed(6)
        return [float(torch.rand(())) for _ in outs]

    assert drawn(predicts=True) == drawn(predicts=False)


def test_an_iterator_that_is_left_gives_the_trainer_back() -> None:
    trainer = tiny_trainer()
    outputs = trainer.predict(INPUTS)
    next(outputs)
    with pytest.raises(JobError, match=r"fit\(\) was called inside predict\(\)"):
        trainer.fit(num_epochs=1)
    outputs.close()  # type: ignore[attr-defined]  # it is a generator
    trainer.fit(num_epochs=1)
    assert trainer.ctx.model.training


@pytest.mark.parametrize(
    ("data", "options", "kind", "told"),
    [
        ([], {}, DataError, "has length 0"),
        ({"a": INPUTS}, {}, DataError, "predict takes one loader"),
        (INPUTS, {"task": "det"}, JobError, "predict: the run has no task 'det'"),
        (INPUTS, {"weights": "emma"}, PluginError, "unknown weight view 'emma'"),
        (7, {}, DataError, "7 is no loader"),
    ],
)
def test_what_cannot_be_predicted_is_told(data: Any, options: Any, kind: Any, told: str) -> None:
    with pytest.raises(kind, match=told):
        list(tiny_trainer().predict(data, **options))


def test_nothing_is_validated() -> None:
    asked: list[str] = []

    class Asked:
        @hookimpl(wrapper=True)
        def validate(self, reason: str) -> Any:
            asked.append(reason)
            return (yield)

    trainer = tiny_trainer([Validation(batches(2), val_on_train_end=True, val_interval=9), Asked()])
    trainer.fit(num_steps=2)
    trainer.bus.members["validation"].plugin.validated_at = 0  # as one that a signal stopped
    asked.clear()
    list(trainer.predict(INPUTS))
    assert asked == []
