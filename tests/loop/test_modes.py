"""Train and eval mode: a fit leaves parts in eval mode that a user has put there."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from tiny import batches
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.loop import eval_mode, parts_of


class Net(nn.Module):
    """A feature extractor and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Modes:
    """Which modules were in eval mode in each forward pass."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    @hookimpl
    def on_forward_begin(self, model: nn.Module) -> None:
        self.seen.append(in_eval(model))


def in_eval(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if not module.training]


def trainer(model: nn.Module, *plugins: object) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, batches(2), nn.functional.mse_loss, plugins)


BODY = ["body", "body.0", "body.1", "body.2"]


def test_a_part_in_eval_mode_trains_in_it_in_every_fit() -> None:
    model, modes = Net(), Modes()
    model.body.requires_grad_(False).eval()
    statistics = model.body[1].running_mean.clone()
    run = trainer(model, modes)
    run.fit(num_epochs=1)
    run.fit(num_epochs=2)
    assert modes.seen == [BODY] * 4
    assert torch.equal(model.body[1].running_mean, statistics)


def test_a_root_in_eval_mode_stays_so_where_a_part_of_it_trains() -> None:
    model, modes = Net(), Modes()
    model.eval().head.train()
    trainer(model, modes).fit(num_epochs=1)
    assert modes.seen == [["", *BODY]] * 2


def test_a_model_in_eval_mode_as_a_whole_is_put_to_train_mode() -> None:
    model, modes = Net(), Modes()
    model.eval()
    trainer(model, modes).fit(num_epochs=1)
    assert modes.seen == [[]] * 2


def test_after_an_evaluation_between_two_fits_the_modes_of_the_first_come_back() -> None:
    model, modes = Net(), Modes()
    model.body.eval()
    run = trainer(model, modes)
    run.fit(num_epochs=1)
    model.eval()
    run.fit(num_epochs=2)
    assert modes.seen == [BODY] * 4


def test_what_a_train_of_ones_own_leaves_in_eval_mode_stays_so() -> None:
    class Frozen(Net):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.body[1].eval()
            return self

    model, modes = Frozen(), Modes()
    trainer(model, modes).fit(num_epochs=1)
    assert modes.seen == [["body.1"]] * 2


def test_a_plugin_that_evaluates_gives_every_part_its_mode_back() -> None:
    class Evaluates:
        @hookimpl
        def on_step_end(self, model: nn.Module) -> None:
            with eval_mode(model):
                assert in_eval(model) == ["", *BODY, "head"]

    model, modes = Net(), Modes()
    model.body.eval()
    trainer(model, Evaluates(), modes).fit(num_epochs=1)
    assert modes.seen == [BODY] * 2


@pytest.mark.parametrize(
    ("part", "frozen", "level", "words"),
    [
        ("body", False, logging.WARNING, "'body': in eval mode before the run, and so in training"),
        ("body", True, logging.INFO, "'body': in eval mode before the run, and so in training"),
        ("body.1", False, logging.INFO, "'body.1': in eval mode"),
    ],
)
def test_it_is_said_loudly_only_where_weights_train_in_eval_mode(
    part: str, frozen: bool, level: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hatbus")
    model = Net()
    model.get_submodule(part).requires_grad_(not frozen).eval()
    trainer(model).fit(num_epochs=1)
    (said,) = [r for r in caplog.records if "eval mode" in r.getMessage()]
    assert said.levelno == level
    assert said.getMessage().startswith(words)


class OwnTrain(nn.Linear):
    """Counts how often it is put to a mode, and never trains its part."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.calls: list[bool] = []
        self.part = nn.Dropout()

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.part.training = False
        self.calls.append(mode)
        return self


class OwnTraining(nn.Linear):
    """Keeps its mode elsewhere."""

    @property
    def training(self) -> bool:
        return self.__dict__["is_in_training"]

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["is_in_training"] = mode


def with_own_method() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    once = model[0].train
    model[0].train = lambda mode=True: once(mode)
    return model


def shared() -> nn.Module:
    part = nn.Linear(2, 2)
    model = nn.Sequential(part, nn.Sequential(part, nn.Dropout()))
    model.register_module("nothing", None)
    part.part_of = [model]  # no module
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        Net,
        shared,
        with_own_method,
        lambda: nn.Sequential(OwnTrain(), nn.Dropout()),
        lambda: nn.Sequential(OwnTraining(2, 2), nn.Dropout()),
        lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.Dropout())),
        lambda: torch.jit.trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.rand(2, 2)),
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.Dropout())),
        lambda: torch.compile(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), backend="eager"),
    ],
)
def test_eval_mode_is_what_eval_makes_of_any_model(make: Callable[[], nn.Module]) -> None:
    model = make()
    model.train()
    list(model.modules())[-1].eval()
    before = [module.training for module in model.modules()]
    assert {id(one) for one in parts_of(model)} == {id(one) for one in model.modules()}
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ArithmeticError), eval_mode(model):
        raise ArithmeticError
    assert [module.training for module in model.modules()] == before


def test_a_train_of_ones_own_is_called_in_eval_mode_too() -> None:
    model = nn.Sequential(OwnTrain(), nn.Dropout())
    with eval_mode(model):
        assert model[0].calls == [False]
    assert model[0].calls == [False, True]
    assert model[0].part.training  # as it was before, exactly
