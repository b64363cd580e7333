"""Predictions of eleven samples, written into a folder, and what is found there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from hatbus import Trainer, hookimpl
from hatbus.data import loader
from hatbus_checkpoint import Predictions

DATA = TensorDataset(torch.randn(11, 3, generator=torch.Generator().manual_seed(1)))


def trainer_of(*plugins: object, model: Any = None) -> Trainer:
    torch.manual_seed(0)
    model = model or torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, [(torch.ones(1, 3), torch.ones(1, 2))], sum, plugins)


def predicted(folder: Path, data: Any = None, *more: object, model: Any = None, **options: Any):
    """The outputs of a prediction that writes into a folder, with two samples in a shard."""
    options = {"shard_size": 3, **options}
    trainer = trainer_of(*more, Predictions(folder, **options), model=model)
    return list(trainer.predict(by_two() if data is None else data))


def by_two() -> Any:
    return loader(DATA, 2, shuffle=False)


def files(folder: Path) -> dict[str, bytes]:
    """What is in a folder, without hidden files."""
    found = (p for p in folder.iterdir() if not p.name.startswith("."))
    return {p.name: p.read_bytes() for p in found}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "predictions.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The shards of a folder, put together."""
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


class Keeps(torch.nn.Module):
    """Gives its inputs; has a parameter for the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.one


class Gives(Keeps):
    """Gives what a function makes of the inputs."""

    def __init__(self, made: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.made = made

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.made(inputs)


class Ends:
    """Ends the prediction at a batch."""

    def __init__(self, batch: int, error: BaseException | None = None) -> None:
        self.batch, self.error = batch, error

    @hookimpl(wrapper=True)
    def write_outputs(self, step_id: int) -> Iterator[None]:
        if step_id == self.batch:
            if self.error is None:
                os.kill(os.getpid(), 9)
            raise self.error
        return (yield)
