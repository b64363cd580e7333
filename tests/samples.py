"""Small data sets and loaders, and what a run sees of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    Dataset,
)

from hatbus import BatchProcessor, Trainer, hookimpl


class Noisy(Dataset[Any]):
    """Every sample is its index and three random numbers."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.rand(), float(torch.rand(()))])


class Drawing(Dataset[Any]):
    """Samples without noise, of a loader that hatbus cannot position."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> float:
        return float(index)


class Keeping:
    """A loader that says and takes back where it stands."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self.at == 0:
            self.order = torch.randperm(10).tolist()
        while self.at < 10:
            self.at += 2
            yield torch.tensor(self.order[self.at - 2 : self.at])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.at = list(state["order"]), state["at"]


def seen_in_fits(build: Callable[[], Any], *ends: int, **options: Any) -> list[Any]:
    """The batches, and a random number drawn beside each, of fits to these steps."""

    class Sees:
        @hookimpl
        def on_batch_begin(self, task: str | None, batch: torch.Tensor) -> None:
            seen.append((task, batch.flatten().tolist(), float(torch.rand(()))))

    seen: list[Any] = []
    model = torch.nn.Linear(1, 1)
    processor = BatchProcessor(lambda outs, _: outs)

    class Ignores:
        @hookimpl
        def forward(self, model: torch.nn.Module) -> torch.Tensor:
            return model.weight.sum()

        @hookimpl
        def compute_loss(self, model_outs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": model_outs}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model, optimizer, build(), plugins=[Sees(), Ignores()], batch_processor=processor, **options
    )
    torch.manual_seed(3)
    for end in ends:
        trainer.fit(num_steps=end)
    return seen
