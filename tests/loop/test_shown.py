"""How a trainer and its context show themselves at a prompt and in a notebook."""

from __future__ import annotations

from typing import Any

import torch
from tiny import batches, tiny_trainer

from hatbus import Bus, Context, Trainer
from hatbus.callbacks import ExponentialMovingAverage


def test_a_trainer_says_what_it_holds_and_how_far_it_is() -> None:
    trainer = tiny_trainer([ExponentialMovingAverage()])
    assert repr(trainer).splitlines() == [
        "Trainer",
        "  model      Linear, 4 parameters",
        "  optimizer  SGD, lr 0.05",
        "  device     cpu",
        "  data       3 steps an epoch",
        "  plugins    ema",
        "  done       0 epochs, 0 steps",
    ]
    ctx = trainer.fit(num_epochs=2)
    ctx.log({"val/loss": torch.tensor(0.25), "many": torch.ones(3)})
    *_, done, last = repr(ctx).splitlines()
    assert done == "  done       2 of 2 epochs, 6 of 6 steps"
    assert last == "  last       val/loss 0.25"


def test_a_notebook_gets_a_table_without_markup_of_the_values() -> None:
    trainer = tiny_trainer([ExponentialMovingAverage()])
    trainer.ctx.log({"<b>": 0.5})
    for shown in (trainer, trainer.ctx):
        text = shown._repr_html_()
        assert text.startswith("<table>")
        assert "&lt;b&gt; 0.5" in text
        assert "<b>" not in text


def test_frozen_parts_groups_and_tasks_are_told() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    model[0].requires_grad_(False)
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters()}]
    loss = torch.nn.functional.mse_loss
    data = {"a": batches(2), "b": batches(2)}
    told = repr(Trainer(model, torch.optim.SGD(groups, lr=0.1), data, {"a": loss, "b": loss}))
    assert "Sequential, 11 parameters, 3 of them trained" in told
    assert "SGD, lr 0.5, 0.1" in told
    assert "2 steps an epoch of tasks a, b" in told
    assert "plugins    none" in told


def test_what_is_not_there_yet_is_left_out() -> None:
    assert "model" not in repr(Context(Bus()))
    half: Any = object.__new__(Trainer)
    assert repr(half).startswith("<hatbus.trainer.Trainer object")
