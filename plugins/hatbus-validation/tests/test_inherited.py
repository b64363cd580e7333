"""A validation sees what the training's plugins do to the model's forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hatbus import BatchProcessor, Trainer, hookimpl, plugin
from hatbus_validation import Validation

DATA = [(torch.arange(12.0).view(4, 3), torch.ones(4, 1))] * 2


def trained(plugins: Any, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)  # what it validates is known
    options = {"loss": nn.functional.mse_loss} | options
    trainer = Trainer(model, optimizer, options.pop("data", DATA), plugins=plugins, **options)
    trainer.fit(num_epochs=1)
    return trainer


def loss_of(trainer: Trainer, name: str = "val/loss") -> float:
    return float(trainer.ctx.latest[name])


def mean_square(outs: Any, batch: Any = DATA[0]) -> float:
    return float(nn.functional.mse_loss(outs, batch[1]))


class Negated:
    """Calls the model itself."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    @hookimpl
    def forward(self, ctx: Any) -> Any:
        self.parts.append(ctx.part)
        return -ctx.wrapped_model(ctx.batch[0])


class Doubled:
    """Surrounds the forward pass."""

    @hookimpl(wrapper=True)
    def forward(self) -> Any:
        return 2 * (yield)


def outs(trainer: Trainer) -> Any:
    with torch.no_grad():
        return trainer.ctx.model(DATA[0][0])


def test_a_forward_of_the_training_is_the_validations_too() -> None:
    one = Negated()
    trainer = trained([one, Doubled(), Validation(DATA)])
    assert loss_of(trainer) == mean_square(-2 * outs(trainer))
    assert one.parts == ["", "", "val", "val"]
    assert trainer.validate()["val/loss"] == loss_of(trainer)


def test_one_of_the_validations_own_goes_before_it() -> None:
    trainer = trained([Negated(), Validation(DATA, callbacks=[Doubled(), Means()])])
    assert loss_of(trainer) == mean_square(-2 * outs(trainer))
    same = Doubled()
    trainer = trained([same, Validation(DATA, callbacks=[same, Means()])])
    assert loss_of(trainer) == mean_square(2 * outs(trainer))
    trainer = trained([Negated(), Validation(DATA, callbacks=[Plain(), Means()])])
    assert loss_of(trainer) == mean_square(outs(trainer))


class Means:
    """Publishes the last batch's loss."""

    @hookimpl
    def on_batch_end(self, ctx: Any, losses: Any) -> None:
        ctx.log({"loss": losses["loss"].detach()})


class Plain:
    @hookimpl
    def forward(self, ctx: Any) -> Any:
        return ctx.wrapped_model(ctx.batch[0])


class Absolute:
    """Computes the losses itself, and adds a term in training through a second plugin."""

    @hookimpl
    def compute_loss(self, ctx: Any) -> Any:
        return {"loss": (ctx.model_outs - ctx.batch[1]).abs().mean()}


class Regularised:
    @hookimpl(wrapper=True)
    def compute_loss(self) -> Any:
        found = yield
        return {"loss": found["loss"] + 100}


def test_a_loss_of_the_training_is_the_validations_too_but_not_what_surrounds_it() -> None:
    trainer = trained([Absolute(), Regularised(), Validation(DATA)], loss=None)
    assert loss_of(trainer) == float((outs(trainer) - DATA[0][1]).abs().mean())
    trainer = trained([Regularised(), Validation(DATA)])
    assert loss_of(trainer) == mean_square(outs(trainer))


def test_a_batch_processor_of_its_own_is_not_replaced() -> None:
    own = BatchProcessor(nn.functional.mse_loss, need_grad_update=False)
    trainer = trained([Negated(), Absolute(), Doubled(), Validation(DATA, own)], loss=None)
    assert loss_of(trainer) == mean_square(2 * outs(trainer))


def test_a_plugin_of_one_task_stays_there() -> None:
    @plugin(tasks="a")
    class OfA(Doubled):
        pass

    data = {"a": DATA, "b": DATA}
    trainer = trained([OfA(), Validation(data)], data=data)
    assert loss_of(trainer, "val/a/loss") == mean_square(2 * outs(trainer))
    assert loss_of(trainer, "val/b/loss") == mean_square(outs(trainer))
    trainer = trained([OfA(), Validation({"b": DATA})], data=data)
    assert loss_of(trainer, "val/b/loss") == mean_square(outs(trainer))
    assert trained([OfA(), Validation(DATA)], data=data).ctx.latest["val/loss"] > 0


def test_a_method_that_overrides_a_marked_one_is_found_with_its_name() -> None:
    class Tripled(Negated):
        def forward(self, ctx: Any) -> Any:
            return 3 * ctx.wrapped_model(ctx.batch[0])

    trainer = trained([Tripled(), Validation(DATA)])
    assert loss_of(trainer) == mean_square(3 * outs(trainer))


def test_an_interval_of_the_training_is_not_the_validations() -> None:
    @plugin(every="2 steps")
    class Sometimes(Doubled):
        pass

    trainer = trained([Sometimes(), Validation(DATA)])
    assert loss_of(trainer) == mean_square(2 * outs(trainer))
