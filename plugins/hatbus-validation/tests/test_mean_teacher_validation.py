"""MeanTeacherValidation: the metrics are those of the chosen half, evaluated by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import Context, Trainer, hookimpl, plugin
from hatbus.errors import JobError, PluginError
from hatbus_validation.mean_teacher_validation import MeanTeacherValidation

torch.set_num_threads(1)


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, 3, generator=chance)
    return list(zip(inputs, inputs.sum(dim=2, keepdim=True), strict=True))


class Pair(nn.Module):
    """The student trains; a key below it begins with the prefix once more."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"student": nn.Linear(3, 1)})
        self.teacher = nn.ModuleDict({"student": nn.Linear(3, 1)})
        for half in (self.student, self.teacher):
            half.forward = half["student"].forward

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.student(inputs)


def fitted(model: nn.Module, *plugins: object) -> Trainer:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    run = Trainer(model, optimizer, batches(4), nn.functional.mse_loss, plugins)
    run.fit(num_epochs=1)
    return run


def by_hand(model: Any, data: Any) -> float:
    with torch.no_grad():
        return float(torch.cat([(model(x) - y).square() for x, y in data]).double().mean())


@pytest.mark.parametrize("half", ["student", "teacher"])
def test_the_half_of_a_pair_gives_its_own_metrics(half: str) -> None:
    val = batches(2, seed=1)
    run = fitted(Pair(), MeanTeacherValidation(half, data_loader=val))
    expected = by_hand(getattr(run.ctx.model, half), val)
    other = by_hand(getattr(run.ctx.model, {"student": "teacher"}.get(half, "student")), val)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(expected)
    assert abs(expected - other) > 1e-3


@pytest.mark.parametrize("half", ["student", "teacher"])
def test_the_weights_below_the_prefix_fill_the_validation_model(half: str) -> None:
    val, own = batches(2, seed=1), nn.ModuleDict({"student": nn.Linear(3, 1)})
    own.forward = own["student"].forward  # type: ignore[method-assign]
    validation = MeanTeacherValidation(half, data_loader=val, val_model=own, strict_match=True)
    run = fitted(Pair(), validation)
    expected = by_hand(getattr(run.ctx.model, half), val)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(expected)
    assert torch.equal(own["student"].weight, getattr(run.ctx.model, half)["student"].weight)


@plugin(stage="average")
class Teacher:
    """A teacher that is a weight view: all weights zero."""

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        self.model = ctx.model
        ctx.weights.add("teacher", self.show)

    @contextmanager
    def show(self) -> Iterator[None]:
        kept = [(p, p.data) for p in self.model.parameters()]
        for p, data in kept:
            p.data = torch.zeros_like(data)
        yield
        for p, data in kept:
            p.data = data


def test_a_teacher_that_is_a_weight_view_is_shown() -> None:
    val = batches(2, seed=1)
    run = fitted(nn.Linear(3, 1), Teacher(), MeanTeacherValidation("teacher", data_loader=val))
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(by_hand(lambda x: 0.0, val))
    run = fitted(nn.Linear(3, 1), Teacher(), MeanTeacherValidation("student", data_loader=val))
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(by_hand(run.ctx.model, val))


def test_what_cannot_be_is_refused_in_words() -> None:
    with pytest.raises(
        JobError,
        match="inference_on is 'techer'; accepted: 'student', 'teacher'; did you mean 'teacher'",
    ):
        MeanTeacherValidation("techer", data_loader=batches(1))
    with pytest.raises(PluginError, match="unknown option 'val_interva'; did you mean"):
        MeanTeacherValidation(data_loader=batches(1), val_interva=1)
    with pytest.raises(PluginError, match="missing option 'data_loader'"):
        MeanTeacherValidation()
    lonely = MeanTeacherValidation("teacher", data_loader=batches(1))
    with pytest.raises(PluginError, match="no submodule 'teacher' in the model"):
        fitted(nn.Linear(3, 1), lonely)
