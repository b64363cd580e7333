"""Small real runs with something random in every place that a checkpoint has to hold."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hatbus import Trainer, hookimpl, plugin
from hatbus.data import OneTask, WeightedTasks, loader
from hatbus_checkpoint import Checkpoint

SAMPLES = 22
BATCH = 4
STEPS = 6
"""Batches of one pass: five whole ones and one of two samples."""


class Noisy(Dataset[Any]):
    """Samples with random augmentation by python, numpy and torch."""

    def __init__(self, seed: int = 0) -> None:
        chance = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(SAMPLES, 3, generator=chance)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.inputs[index]
        noise = random.random() + np.random.rand() + torch.rand(3)
        return inputs + 0.1 * noise, inputs.sum().reshape(1)


class Net(nn.Module):
    """Batch norm (buffers), dropout (random), tied weights (aliases)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.head = nn.Linear(3, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.dropout(self.norm(self.first(inputs)), 0.3, self.training)
        return self.head(self.tied(hidden))


@plugin(stage="schedule")
class Schedule:
    """A learning rate with memory, and noise on it from every generator."""

    def __init__(self) -> None:
        self.rate = 0.05

    @hookimpl
    def on_step_begin(self, optimizer: torch.optim.Optimizer) -> None:
        self.rate *= 0.97
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        for group in optimizer.param_groups:
            group["lr"] = self.rate * (1 + 0.01 * noise)

    def state_dict(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rate = state["rate"]


@plugin(stage="average")
class Average:
    """An average of the weights with its count, that is fed back now and then."""

    def __init__(self) -> None:
        self.mean: dict[str, torch.Tensor] = {}
        self.count = 0

    @hookimpl
    def on_optimizer_step_end(self, model: nn.Module, ctx: Any) -> None:
        if not ctx.committed:
            return
        self.count += 1
        for name, value in model.named_parameters():
            mean = self.mean.setdefault(name, value.detach().clone())
            mean.lerp_(value.detach(), 1 / (1 + self.count))
            if self.count % 5 == 0:
                value.data.lerp_(mean, 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.count = state["mean"], state["count"]


@plugin(stage="monitor")
class Metric:
    """A sum over the epoch, published, and started anew at its begin."""

    def __init__(self) -> None:
        self.sum = torch.zeros(())
        self.epochs = 0
        self.history: list[torch.Tensor] = []

    @hookimpl
    def on_epoch_begin(self, step_id: int, optimizer: torch.optim.Optimizer) -> None:
        if step_id == 0:
            self.sum = torch.zeros(())
            self.epochs += 1
            optimizer.param_groups[0]["weight_decay"] = 0.01 * random.random()

    @hookimpl
    def on_step_end(self, ctx: Any, losses: dict[str, torch.Tensor]) -> None:
        self.sum = self.sum + torch.stack([v.detach() for v in losses.values()]).sum()
        ctx.log({"sum": self.sum})

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        if ctx.position.step == 0:
            self.history.append(self.sum)

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "epochs": self.epochs, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.epochs, self.history = state["sum"], state["epochs"], state["history"]


class Stateful:
    """A loader of somebody else that can save where it stands."""

    def __init__(self) -> None:
        self.at, self.passes, self.data = 0, 0, Noisy()
        self.is_loaded = False

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Any:
        if self.at and not self.is_loaded:
            self.at, self.passes = 0, self.passes + 1
        self.is_loaded = False
        return self.rest()

    def rest(self) -> Any:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.passes))
        while self.at < STEPS:
            mine = order[self.at * BATCH : (self.at + 1) * BATCH]
            self.at += 1
            pairs = [self.data[int(i)] for i in mine]
            yield torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
        self.at, self.passes = 0, self.passes + 1

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at, "passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at, self.passes, self.is_loaded = state["at"], state["passes"], True


def data_of(kind: str, workers: int, seed: int = 0) -> Any:
    """A loader: "own", "foreign" (a DataLoader), "generator" (one with its own) or "stateful"."""
    if kind == "stateful":
        return Stateful()
    if kind == "own":
        return loader(Noisy(seed), BATCH, num_workers=workers)
    generator = torch.Generator().manual_seed(7) if kind == "generator" else None
    return DataLoader(Noisy(seed), BATCH, shuffle=True, num_workers=workers, generator=generator)


def run(path: Path, steps: int, plugins: Any = None, **choice: Any) -> Trainer:
    """Trains to ``steps`` steps in all, going on from what is in ``path``.

    Args:
        path: save_dir.
        steps: the plan.
        plugins: more plugins by name.
        choice: kind, workers, precision, average, accumulate, tasks, optimizer, frozen; and
            options of the checkpoint.
    """
    trainer = trainer_of(path, plugins, **choice)
    trainer.fit(num_steps=steps)
    return trainer


def trainer_of(path: Path, plugins: Any = None, **choice: Any) -> Trainer:
    """The trainer of ``run``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    kind, workers = choice.pop("kind", "own"), choice.pop("workers", 0)
    tasks, average = choice.pop("tasks", ""), choice.pop("average", True)
    precision, accumulate = choice.pop("precision", "fp32"), choice.pop("accumulate", 1)
    optimizer, nan = choice.pop("optimizer", torch.optim.AdamW), choice.pop("nan", "ignore")
    model = Net()
    model.norm.requires_grad_(not choice.pop("frozen", False))
    data = data_of(kind, workers)
    if tasks:
        data = {"a": data, "b": data_of(kind, workers, seed=1)}
    samplers = {"one": OneTask, "weighted": lambda: WeightedTasks({"a": 2.0, "b": 1.0})}
    checkpoint = Checkpoint(str(path), **{"interval_by": "step", "resume": "auto", **choice})
    parts = {"schedule": Schedule(), "metric": Metric(), "checkpoint": checkpoint}
    if average:
        parts["average"] = Average()
    return Trainer(
        model,
        optimizer(model.parameters(), lr=0.05),
        data,
        nn.functional.mse_loss,
        {**parts, **(plugins or {})},
        seed=3,
        task_sampler=samplers[tasks]() if tasks in samplers else None,
        accumulate=accumulate,
        precision=precision,
        nan=nan,
    )


OF_THE_RUN = ("run", "lineage", "parent", "reason", "saved_at", "sha256")
"""Fields of the manifest that differ between equal states: ids, the clock, and the seal."""


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a checkpoint; of the manifest, what is not of this very run."""
    files = (p for p in path.rglob("*") if p.is_file())
    found = {str(p.relative_to(path)): p.read_bytes() for p in files}
    manifest = json.loads(found["MANIFEST.json"])
    found["MANIFEST.json"] = json.dumps(
        {k: v for k, v in manifest.items() if k not in OF_THE_RUN}
    ).encode()
    return found


def state_in(path: Path) -> str:
    """Everything in a checkpoint, whichever files it is in."""
    from hatbus_checkpoint.folder import entry_of
    from hatbus_checkpoint.restore import Saved
    from hatbus_checkpoint.tree import encode

    saved = Saved(entry_of(path))
    whole: dict[str, Any] = {stem: saved.tree(stem) for stem in saved.stems if "." not in stem}
    data, tensors = encode({**whole, "model": saved.model()}, inline=1 << 40)
    assert not tensors
    return json.dumps(data, sort_keys=True)


def last(path: Path) -> dict[str, bytes]:
    """The contents of the newest checkpoint in a folder."""
    from hatbus_checkpoint.folder import CheckpointFolder

    found = CheckpointFolder(path).latest()
    assert found is not None
    return contents(found.path)
