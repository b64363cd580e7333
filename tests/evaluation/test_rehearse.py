"""``trainer.rehearse()``: a training that leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hatbus import Trainer, hookimpl, plugin
from hatbus.callbacks import (
    CosLrUpdater,
    ExponentialMovingAverage,
    FreezeModule,
    FuseBN,
    GradClip,
    Validation,
)
from hatbus.data import OneTask, loader
from hatbus.errors import JobError

SAMPLES = TensorDataset(*(torch.cat(part) for part in zip(*batches(10), strict=True)))


class Odd(nn.Module):
    """A net with all that a training moves beside weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 4, 2), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)
        self.calls, self.means = 0, [0.0]
        self.register_buffer("hidden", torch.zeros(1), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.hidden += 1
        self.means.append(float(inputs.mean()))
        return self.head(self.body(inputs[:, None]).flatten(1))


def everything(trainer: Trainer) -> dict[str, Any]:
    """What there is to be compared of a trainer."""
    model, optimizer = trainer.ctx.model, trainer.ctx.optimizer
    assert optimizer is not None
    return copy.deepcopy(
        {
            "state": model.state_dict(),
            "tensors": [vars(one)["_buffers"] for one in model.modules()],
            "grads": [one.grad for one in model.parameters()],
            "wanted": [one.requires_grad for one in model.parameters()],
            "modes": [one.training for one in model.modules()],
            "names": [name for name, _ in model.named_modules()],
            "odd": [(one.calls, one.means) for one in model.modules() if isinstance(one, Odd)],
            "optimizer": optimizer.state_dict(),
            "plugins": trainer.bus.state_dict(),
            "random": torch.get_rng_state(),
            "latest": trainer.ctx.latest,
            "place": vars_of_slots(trainer.ctx.position),
        }
    )


def vars_of_slots(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def assert_same(one: Any, other: Any, at: str = "") -> None:
    assert type(one) is type(other), at
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    elif isinstance(one, dict):
        assert list(one) == list(other), at
        for name in one:
            assert_same(one[name], other[name], f"{at}/{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), at
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{at}/{number}")
    else:
        assert one == other, at


LOADERS: dict[str, Callable[[], Any]] = {
    "list": lambda: batches(5),
    "hatbus": lambda: loader(SAMPLES, 8),
    "torch": lambda: DataLoader(SAMPLES, 8, shuffle=True),
    "generator": lambda: DataLoader(SAMPLES, 8, True, generator=torch.Generator().manual_seed(1)),
    "workers": lambda: DataLoader(SAMPLES, 8, shuffle=True, num_workers=1, persistent_workers=True),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
}


def odd_trainer(data: str = "list", optimizer: str = "adam", **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = Odd()
    plugins = [
        CosLrUpdater(warmup_len=2),
        GradClip(1.0),
        FreezeModule([["head"]], [2], "step"),
        FuseBN([["body"]], [4], "step"),
        ExponentialMovingAverage(decay=0.5),
        Validation(batches(2)),
    ]
    made = OPTIMIZERS[optimizer](model.parameters())
    return Trainer(model, made, LOADERS[data](), nn.functional.mse_loss, plugins, **options)


@pytest.mark.parametrize(
    ("data", "behind"),
    [("list", 0), ("list", 5), ("hatbus", 3), ("torch", 0), ("generator", 3), ("workers", 3)],
)
def test_a_training_with_rehearsals_between_is_the_one_without(data: str, behind: int) -> None:
    def trained(*, rehearses: bool) -> dict[str, Any]:
        trainer = odd_trainer(data)
        for steps in [*([behind] if behind else []), 8]:
            if rehearses:
                before = everything(trainer)
                trainer.rehearse(9)
                assert_same(before, everything(trainer))
            trainer.fit(num_steps=steps)
        return everything(trainer)

    assert_same(trained(rehearses=False), trained(rehearses=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_as_before(optimizer: str) -> None:
    trainer = odd_trainer(optimizer=optimizer)
    trainer.fit(num_steps=3)
    before, groups = everything(trainer), trainer.ctx.optimizer.param_groups
    trainer.rehearse(5, [DoublesRates()])
    assert_same(before, everything(trainer))
    assert trainer.ctx.optimizer.param_groups is groups


class DoublesRates:
    """Changes what a schedule would, in place."""

    @hookimpl
    def on_step_begin(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 2


def test_the_steps_are_those_of_a_training() -> None:
    seen: list[torch.Tensor] = []
    note = hearing(["on_step_end"], lambda _, told: seen.append(told["losses"]["loss"].detach()))
    trainer = tiny_trainer([note])
    trainer.fit(num_steps=7)
    rehearsed: list[torch.Tensor] = []
    note = hearing(["on_step_end"], lambda _, t: rehearsed.append(t["losses"]["loss"].detach()))
    ctx = tiny_trainer().rehearse(7, [note])
    assert torch.equal(torch.stack(seen), torch.stack(rehearsed))
    assert (ctx.position.epoch, ctx.position.step, ctx.is_aside) == (2, 1, True)


def test_all_is_as_before_when_a_step_fails() -> None:
    class Fails:
        @hookimpl
        def on_step_end(self, global_step_id: int) -> None:
            if global_step_id == 3:
                raise RuntimeError("no more")

    trainer = odd_trainer()
    before = everything(trainer)
    with pytest.raises(RuntimeError, match="no more"):
        trainer.rehearse(9, [Fails()])
    assert_same(before, everything(trainer))
    trainer.rehearse(1)


def test_those_that_write_or_schedule_hear_nothing() -> None:
    @plugin(stage="report")
    class Writer:
        @hookimpl
        def on_step_end(self) -> None:
            raise AssertionError("a step ends")

    trainer = tiny_trainer([Writer(), CosLrUpdater(warmup_len=2)])
    seen: list[float] = []
    note = hearing(
        ["on_step_end"], lambda _, told: seen.append(told["optimizer"].param_groups[0]["lr"])
    )
    trainer.rehearse(3, [note])
    assert seen == [0.05] * 3


def test_a_plugin_of_its_own_keeps_what_it_saw() -> None:
    class Counts:
        def __init__(self) -> None:
            self.seen: list[int] = []

        @hookimpl
        def on_step_end(self, global_step_id: int) -> None:
            self.seen.append(global_step_id)

    counts = Counts()
    tiny_trainer().rehearse(3, {"counts": counts})
    assert counts.seen == [0, 1, 2]


def test_a_plugin_ends_it() -> None:
    class Stops:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            ctx.control.stop("run", "seen enough")

    assert tiny_trainer().rehearse(99, [Stops()]).position.global_step == 1


def test_tasks_and_accumulation_are_rehearsed_too() -> None:
    losses = dict.fromkeys("ab", nn.functional.mse_loss)
    data = {"a": batches(3), "b": DataLoader(SAMPLES, 4, shuffle=True)}
    trainer = tiny_trainer(data=data, loss=losses, task_sampler=OneTask(), accumulate=2)
    before = everything(trainer)
    assert trainer.rehearse(4).position.global_step == 4
    assert_same(before, everything(trainer))


class ModesOptimizer(torch.optim.SGD):
    """Refuses steps in eval mode, as schedule-free optimizers do."""

    is_training = False

    def train(self) -> None:
        self.is_training = True

    def eval(self) -> None:
        self.is_training = False

    def step(self, closure: Any = None) -> Any:
        assert self.is_training
        return super().step(closure)


def test_an_optimizer_with_modes_is_in_train_mode_meanwhile() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = ModesOptimizer(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, batches(3), nn.functional.mse_loss)
    before = everything(trainer)
    assert trainer.rehearse(4).position.global_step == 4
    assert not optimizer.is_training
    assert_same(before, everything(trainer))


def test_a_loss_with_weights_is_as_before() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(outs * self.scale, target)

    torch.manual_seed(0)
    model, loss = nn.Linear(3, 1), Scaled()
    both = [*model.parameters(), *loss.parameters()]
    trainer = Trainer(model, torch.optim.SGD(both, lr=0.1), batches(3), loss)
    trainer.rehearse(5)
    assert float(loss.scale.detach()) == 1.0


def test_a_number_of_steps_that_is_none_is_refused() -> None:
    with pytest.raises(JobError, match="num_steps is 0; accepted: a whole number of at least 1"):
        tiny_trainer().rehearse(0)
