"""Small real runs on the CPU, and plugins that write down what they see of a validation."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hatbus import Context, Trainer, hookimpl, plugin
from hatbus.rng import capture, restore

torch.set_num_threads(1)


def batches(count: int, size: int = 4, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, size, 3, generator=chance)
    return list(zip(inputs, inputs.sum(dim=2, keepdim=True), strict=True))


class Net(nn.Module):
    """Draws random numbers in training and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs))


def trainer(*plugins: object, data: Any = None, model: Any = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = model or Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss = options.pop("loss", nn.functional.mse_loss)
    return Trainer(model, optimizer, data or batches(5), loss, plugins, **options)


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.ctx.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def mean_loss(model: nn.Module, data: Any) -> float:
    """By hand: the mean of the squared error over every sample."""
    was = model.training
    model.eval()
    with torch.no_grad():
        errors = torch.cat([(model(x) - y).square().flatten() for x, y in data])
    model.train(was)
    return float(errors.double().mean())


class Draws:
    """A callback that draws from every global generator."""

    def __init__(self) -> None:
        self.batches = 0

    @hookimpl
    def on_batch_end(self) -> None:
        self.batches += 1
        random.random(), np.random.rand(), torch.rand(3)


class Raises:
    """A callback that fails in its n-th batch."""

    def __init__(self, at: int, error: type[BaseException] = RuntimeError) -> None:
        self.left, self.error = at, error

    @hookimpl
    def on_batch_end(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error("midway")


@plugin(stage="average")
class Average:
    """A weight view as EMA offers it: half of the raw weights, exchanged without copies."""

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        self.model = ctx.model
        ctx.weights.add("ema", self.show)

    @contextmanager
    def show(self) -> Iterator[None]:
        kept = [(p, p.data) for p in self.model.parameters()]
        try:
            for p, data in kept:
                p.data = data * 0.5
            yield
        finally:
            for p, data in kept:
                p.data = data


class Sees:
    """A callback that notes the first parameter and the mode of the model it validates."""

    def __init__(self) -> None:
        self.first: list[torch.Tensor] = []
        self.pointers: list[int] = []
        self.training: list[bool] = []

    @hookimpl
    def on_batch_end(self, model: nn.Module) -> None:
        first = next(model.parameters())
        self.first.append(first.detach().clone())
        self.pointers.append(first.data_ptr())
        self.training.append(any(m.training for m in model.modules()))


@plugin(stage="checkpoint")
class Saves:
    """Notes the first parameter wherever a checkpoint would be written."""

    def __init__(self) -> None:
        self.saved: dict[str, list[torch.Tensor]] = {"step": [], "epoch": [], "loop": []}

    def _note(self, ctx: Context, when: str) -> None:
        assert ctx.weights.current == "raw"
        self.saved[when].append(next(ctx.model.parameters()).detach().clone())

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        self._note(ctx, "step")

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        self._note(ctx, "epoch")

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        self._note(ctx, "loop")


def shuffled(seed: int = 3) -> DataLoader[Any]:
    """A loader that draws from torch's global generator."""
    inputs = torch.randn(10, 3, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 4, shuffle=True)


@plugin(stage="checkpoint")
class Snapshots:
    """The smallest checkpoint there is: everything a run is made of, in memory."""

    def __init__(self, kept: dict[str, Any] | None = None) -> None:
        self.kept = kept

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        if self.kept is None:
            return
        kept = copy.deepcopy(self.kept)
        ctx.bus.load_state_dict(kept["plugins"])
        ctx.model.load_state_dict(kept["model"])
        ctx.optimizer.load_state_dict(kept["optimizer"])  # type: ignore[union-attr]
        ctx.position.epoch, ctx.position.step, ctx.position.global_step = kept["position"]
        restore(kept["random"])

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        if ctx.exception is None:
            state = {
                "plugins": ctx.bus.state_dict(),
                "model": ctx.model.state_dict(),
                "optimizer": ctx.optimizer.state_dict(),  # type: ignore[union-attr]
                "position": (ctx.position.epoch, ctx.position.step, ctx.position.global_step),
                "random": capture(),
            }
            self.kept = copy.deepcopy(state)


class Batches:
    """Notes the task and the inputs of every batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, torch.Tensor]] = []
        self.steps: list[tuple[int, int, int]] = []

    @hookimpl
    def on_batch_end(self, task: str | None, batch: Any) -> None:
        self.seen.append((task, batch[0]))

    @hookimpl
    def on_step_end(self, epoch_id: int, step_id: int, global_step_id: int) -> None:
        self.steps.append((epoch_id, step_id, global_step_id))
