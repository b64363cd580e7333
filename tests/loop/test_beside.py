"""Modules beside the model: found where a loss holds them, moved, seen by what looks at weights."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from tiny import batches
from torch import nn

from hatbus import BatchProcessor, Trainer, hookimpl
from hatbus.callbacks import FreezeModule, GradMonitor, GradScale, Validation
from hatbus.errors import JobError, NonFiniteError
from hatbus.loop import Beside, find_module
from hatbus.loop.module_names import module_names


class Weighed(nn.Module):
    """A loss with a weight of its own, and a count of the batches that it saw in training."""

    def __init__(self) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.modes: list[bool] = []

    def forward(self, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        self.seen += self.training
        return torch.exp(-self.log_var) * (outs - target).square().mean() + self.log_var


GLOBAL = Weighed()


def by_global_name(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return GLOBAL(outs, target)


class Held:
    """An object of the user's that has a module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.module(outs, target)


class Adversary(BatchProcessor):
    """A batch processor of the user's that has a network."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__(nn.functional.mse_loss)
        self.critic = critic


def scaled(loss: nn.Module, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 2 * loss(outs, target)


def trainer(module: nn.Module | None = None, plugins: Any = (), **options: Any) -> Trainer:
    """A linear model; the optimizer trains the module too."""
    torch.manual_seed(0)
    model = options.pop("model", None) or nn.Linear(3, 1)
    more = [] if module is None else list(module.parameters())
    optimizer = torch.optim.SGD([*model.parameters(), *more], lr=0.1, momentum=0.9)
    data = options.pop("data", None) or batches(4)
    return Trainer(model, optimizer, data, plugins=plugins, **options)


def enclosing(module: nn.Module) -> Any:
    return lambda outs, target: module(outs, target)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (lambda m: m, "loss"),
        (nn.DataParallel, "loss"),
        (enclosing, "loss_module"),
        (lambda m: partial(scaled, m), "loss_0"),
        (lambda m: m.forward, "loss"),
        (Held, "loss_module"),
        (lambda m: enclosing(Held(m)), "loss_module_module"),
    ],
)
def test_a_module_is_found_where_a_loss_holds_it(
    loss: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = Weighed()
    ctx = trainer(module, loss=loss(module)).ctx
    assert ctx.modules == {name: module}
    assert caplog.text == ""


def test_a_module_is_found_under_a_global_name_if_it_is_trained() -> None:
    assert trainer(GLOBAL, loss=by_global_name).ctx.modules == {"loss_GLOBAL": GLOBAL}
    assert trainer(loss=by_global_name).ctx.modules == {}


def test_each_task_has_its_own_and_a_batch_processor_what_it_holds() -> None:
    one, other, critic = Weighed(), Weighed(), nn.Linear(1, 1)
    tasks = trainer(data={"a": batches(2), "b/c": batches(2)}, loss={"a": one, "b/c": other})
    assert tasks.ctx.modules == {"loss_a": one, "loss_b_c": other}
    assert trainer(batch_processor=Adversary(critic)).ctx.modules == {"critic": critic}


def test_what_is_a_part_of_the_model_is_not_beside_it() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.loss = nn.Linear(3, 1), Weighed()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.body(inputs)

    model, other = WithLoss(), Weighed()
    assert trainer(model=model, loss=model.loss).ctx.modules == {}
    assert trainer(model=model, loss=other).ctx.modules == {"loss_2": other}


def test_a_tensor_that_the_model_shares_is_left_to_the_model() -> None:
    model, around = nn.Linear(3, 1), nn.Module()
    around.model, around.own = model, nn.Linear(1, 1)
    assert list(Beside({"loss": around}, model).state_dict()) == [
        "loss.own.weight",
        "loss.own.bias",
    ]


def test_parameters_that_nobody_knows_of_are_warned_of_until_they_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    critic = nn.Linear(3, 1)
    trainer(critic, loss=nn.functional.mse_loss)
    assert "trains 2 parameters (of shape (1, 3), (1,)) that are neither the model's" in caplog.text
    caplog.clear()
    named = trainer(critic, loss=nn.functional.mse_loss, modules={"critic": critic})
    assert (caplog.text, named.ctx.modules) == ("", {"critic": critic})


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([nn.Linear(1, 1)], "modules is .* accepted: {name: torch.nn.Module}"),
        ({"critic": 3}, "'critic' is 3; accepted"),
        ({"critic": nn.Linear}, "'critic' is the class Linear; accepted"),
        ({"a.b": nn.Linear(1, 1)}, "'a.b' is no name; accepted"),
        ({"0": nn.Linear(1, 1)}, "'0' is the name of a part of the model"),
    ],
)
def test_modules_that_cannot_be_are_refused(modules: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        trainer(model=nn.Sequential(nn.Linear(3, 1)), modules=modules)


def test_modules_are_moved_to_the_device() -> None:
    critic, loss = nn.Linear(3, 1), Weighed()
    Trainer(
        nn.Linear(3, 1).requires_grad_(False),
        torch.optim.SGD(loss.parameters(), lr=0.1),
        batches(1),
        batch_processor=BatchProcessor(loss),
        modules={"critic": critic},
        device="meta",
    )
    assert {critic.weight.device.type, loss.seen.device.type} == {"meta"}  # type: ignore[union-attr]  # a tensor


def test_a_validation_puts_a_loss_to_eval_mode_and_back() -> None:
    loss = Weighed()
    trainer(loss, [Validation(batches(2))], loss=loss).fit(num_epochs=2)
    assert loss.modes == 2 * ([True] * 4 + [False] * 2)
    assert (loss.seen, loss.training) == (8, True)


def test_a_loss_of_the_validations_own_is_in_eval_mode_too() -> None:
    loss, own = Weighed(), Weighed()
    processor = BatchProcessor(own, need_grad_update=False)
    trainer(loss, [Validation(batches(2), processor)], loss=loss).fit(num_epochs=1)
    assert own.modes == [False, False]
    assert loss.modes == [True] * 4


def test_names_beside_the_model_are_found_frozen_scaled_and_measured() -> None:
    loss = Weighed()
    heard: dict[str, Any] = {}

    class Hears:
        @hookimpl
        def on_log(self, logs: Any) -> None:
            heard.update(logs)

    freezes = FreezeModule([["loss"]], [2], "step")
    plugins = [freezes, GradScale([("loss", 0.0)]), GradMonitor(log_freq=1), Hears()]
    ctx = trainer(loss, plugins, loss=loss).fit(num_steps=1)
    assert module_names(ctx.all_modules) == ["loss"]
    assert find_module(ctx.all_modules, "loss", "here") is loss
    assert find_module(ctx.all_modules, "", "here") is ctx.model
    assert (heard["grad_norm/loss"], loss.log_var.item()) == (0.0, 0.0)
    free = trainer(other := Weighed(), [FreezeModule([["loss"]], [2], "step")], loss=other)
    before = free.fit(num_steps=2).modules["loss"].log_var.item()  # type: ignore[union-attr, operator]  # a tensor
    free.fit(num_steps=4)
    assert other.log_var.item() == before != 0.0
    assert other.modes == [True, True, False, False]


def test_a_bad_weight_beside_the_model_ends_the_run() -> None:
    def loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        zero = torch.sqrt((critic.bias - critic.bias.detach()).square().sum())
        return (outs - target).square().mean() + zero

    critic = nn.Linear(1, 1)
    with pytest.raises(NonFiniteError, match=r"step 0 left parameter 'loss_critic.bias'"):
        trainer(critic, loss=loss).fit(num_steps=1)


def test_without_anything_beside_it_all_modules_are_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    ctx = trainer(loss=nn.functional.mse_loss).ctx
    assert ctx.all_modules is ctx.model
