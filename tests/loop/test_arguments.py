"""What a trainer refuses to be made of, in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import MeanLoss, batches, tiny_trainer, weights
from torch.nn.functional import mse_loss

from hatbus import BatchProcessor, Trainer
from hatbus.errors import JobError, PluginError


def made(**given: Any) -> Trainer:
    """A trainer of a linear model, with something else in place of one of its parts."""
    model = torch.nn.Linear(3, 1)
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "data": batches(3),
        "loss": mse_loss,
    }
    return Trainer(**{**parts, **given})


@pytest.mark.parametrize(
    ("plugins", "start"),
    [
        (["cos_lr"], "'cos_lr' is no plugin but a str; plugins takes a list of instances, as"),
        ([(MeanLoss, "x")], "(<class 'tiny.MeanLoss'>, 'x') is no plugin but a tuple; plugins"),
        ({"lr": None}, "None is no plugin but a NoneType; plugins takes"),
        ("cos_lr", "plugins is 'cos_lr'; accepted: a list of instances, as [EMA()], or a mapping"),
        (MeanLoss(), "plugins is <tiny.MeanLoss object at"),
        ([MeanLoss], "plugin 'mean_loss' is the class MeanLoss; give an instance of it"),
    ],
)
def test_what_is_no_list_of_plugins_is_refused_with_what_is_one(plugins: Any, start: str) -> None:
    with pytest.raises(PluginError) as caught:
        made(plugins=plugins)
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("part", "value", "start"),
    [
        ("optimizer", None, "optimizer is None; accepted: an instance, as torch.optim.SGD("),
        ("optimizer", torch.optim.SGD, "optimizer is the class SGD; accepted: an instance"),
        ("loss", "mse", "loss is 'mse'; accepted: loss(model_outs, target), as torch.nn"),
        ("loss", torch.nn.MSELoss, "loss is the class MSELoss; accepted: loss(model_outs"),
        ("loss", {"det": None}, "loss of task 'det' is None; accepted: loss(model_outs"),
        ("model", torch.nn.Linear, "model is the class Linear; accepted: a torch.nn.Module"),
    ],
)
def test_what_is_no_model_optimizer_or_loss_is_refused(part: str, value: Any, start: str) -> None:
    with pytest.raises(JobError) as caught:
        made(**{part: value})
    assert str(caught.value).startswith(start)


def test_an_optimizer_that_holds_nothing_of_the_model_is_refused() -> None:
    others = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.05)
    with pytest.raises(JobError, match="none of the model's 2 trainable parameters, so nothing"):
        made(optimizer=others)


def test_an_optimizer_may_train_something_else_where_that_can_be_meant() -> None:
    class Own(BatchProcessor):
        """Might train what is no part of the model."""

    frozen = torch.nn.Linear(3, 1).requires_grad_(False)
    others = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.05)
    made(model=frozen, optimizer=others)
    made(model=torch.nn.Identity(), optimizer=others)
    made(loss=None, batch_processor=Own(mse_loss), optimizer=others)
    with pytest.raises(JobError, match="none of the model's"):
        made(loss=None, batch_processor=BatchProcessor(mse_loss), optimizer=others)


def test_an_optimizer_of_some_of_the_parameters_of_a_wrapped_model_trains_them() -> None:
    model = torch.nn.Linear(3, 1)
    for wrapped in (model, torch.nn.Sequential(model), torch.compile(model, backend="eager")):
        before = model.bias.detach().clone()
        run = made(model=wrapped, optimizer=torch.optim.SGD([model.bias], lr=0.05))
        run.fit(num_steps=1)
        assert not model.bias.equal(before)


def test_a_batch_of_three_is_the_inputs_and_a_target_of_the_other_two() -> None:
    def loss(found: torch.Tensor, target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        wanted, weight = target
        return (weight * (found - wanted) ** 2).mean()

    data = [(inputs, target, torch.ones(1)) for inputs, target in batches(3)]
    run, plain = tiny_trainer(data=data, loss=loss), tiny_trainer()
    run.fit(num_epochs=1)
    plain.fit(num_epochs=1)
    assert torch.allclose(weights(run), weights(plain))
