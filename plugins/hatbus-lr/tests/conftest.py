"""A real run on CPU that writes down what a schedule did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from hatbus import Trainer, hookimpl

Fit = Callable[..., "Notes"]


class Notes:
    """What was seen at every step: each group's value, and what was published."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.values: list[tuple[Any, ...]] = []
        self.logs: list[tuple[int, dict[str, Any]]] = []

    @hookimpl
    def on_step_end(self, optimizer: torch.optim.Optimizer) -> None:
        self.values.append(tuple(group[self.field] for group in optimizer.param_groups))

    @hookimpl
    def on_log(self, logs: dict[str, Any], global_step_id: int) -> None:
        if "train/loss" not in logs:
            self.logs.append((global_step_id, dict(logs)))

    @property
    def first(self) -> list[float]:
        """The first group's values."""
        return [values[0] for values in self.values]


def make_optimizer(lrs: Sequence[float] = (0.1,), **options: Any) -> torch.optim.Optimizer:
    """SGD with one parameter per lr, each in a group of its own."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    kind = options.pop("kind", torch.optim.SGD)
    return kind(groups, lr=lrs[0], **options)


def make_trainer(
    *plugins: object, optimizer: Any = None, steps: int = 4, data: Any = None, **options: Any
) -> Trainer:
    """A trainer whose model is all the optimizer's parameters and whose epoch has 4 steps."""
    optimizer = optimizer or make_optimizer()
    model = torch.nn.Module()
    for number, group in enumerate(optimizer.param_groups):
        model.register_parameter(f"p{number}", group["params"][0])
    model.forward = lambda batch: sum(p.sum() for p in model.parameters()) * batch.sum()  # type: ignore[method-assign]
    batch = (torch.ones(1), torch.zeros(1))
    data = [batch] * steps if data is None else data
    return Trainer(model, optimizer, data, lambda out, target: out, plugins, **options)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def optimizer_of() -> Callable[..., torch.optim.Optimizer]:
    return make_optimizer


@pytest.fixture
def trainer_of() -> Callable[..., Trainer]:
    return make_trainer


@pytest.fixture
def fit() -> Fit:
    """Runs a plugin for epochs or steps; gives back what was seen."""

    def run(
        plugin: object,
        epochs: int | None = 3,
        num_steps: int | None = None,
        field: str = "lr",
        **options: Any,
    ) -> Notes:
        notes = Notes(field)
        plan = {"num_steps": num_steps} if num_steps else {"num_epochs": epochs}
        make_trainer(plugin, notes, **options).fit(**plan)
        return notes

    return run
