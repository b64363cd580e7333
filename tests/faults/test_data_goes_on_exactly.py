"""What a run is given after a kill is what it would have been given without: bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint
from hatbus.data import loader


class Killed(BaseException):
    """The process is gone."""


class Sees:
    """Keeps every batch, and dies in a step."""

    def __init__(self, dies_in: int = -1) -> None:
        self.batches: dict[int, list[float]] = {}
        self.dies_in = dies_in

    @hookimpl
    def on_batch_end(self, batch: Any, global_step_id: int) -> None:
        if global_step_id == self.dies_in:
            raise Killed
        self.batches.setdefault(global_step_id, []).extend(batch[0].flatten().tolist())


class Negatives(Dataset[Any]):
    """Noise per sample, and what is drawn once an epoch."""

    def __init__(self) -> None:
        self.drawn = 0.0

    def set_epoch(self, epoch: int) -> None:
        self.drawn = epoch + random.random()

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([index + self.drawn + random.random()]), torch.zeros(1)


def mixed(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = map(torch.stack, zip(*rows, strict=True))
    return inputs + torch.rand(()), targets


def tensors() -> TensorDataset:
    return TensorDataset(torch.arange(10.0).unsqueeze(1), torch.zeros(10, 1))


WORKERS: dict[str, Any] = {"num_workers": 2}
PERSISTENT: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}
LOADERS: dict[str, Callable[[], Any]] = {
    "ours, tensors, random collate": lambda: loader(tensors(), 4, collate_fn=mixed),
    "ours, workers": lambda: loader(tensors(), 4, collate_fn=mixed, **WORKERS),
    "ours, workers that persist": lambda: loader(
        Subset(Negatives(), range(10)), 4, collate_fn=mixed, **PERSISTENT
    ),
    "torch's, told the epoch": lambda: DataLoader(Negatives(), 4, shuffle=True),
    "torch's, workers": lambda: DataLoader(
        Negatives(), 4, shuffle=True, collate_fn=mixed, **WORKERS
    ),
    "torch's, workers that persist": lambda: DataLoader(
        Subset(Negatives(), range(10)), 4, shuffle=True, **PERSISTENT
    ),
}


def run(folder: Path, build: Callable[[], Any], dies_in: int = -1) -> dict[int, list[float]]:
    torch.manual_seed(5)
    random.seed(5)
    model, sees = torch.nn.Linear(1, 1), Sees(dies_in)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    saver = Checkpoint(folder, save_interval=2, interval_by="step", resume="auto")
    trainer = Trainer(model, optimizer, build(), torch.nn.functional.mse_loss, [sees, saver])
    try:
        trainer.fit(num_steps=7)  # an epoch has 3
    except Killed:
        assert dies_in >= 0
    return sees.batches


@pytest.mark.parametrize("kind", LOADERS)
def test_a_killed_run_is_given_what_it_would_have_been_given(kind: str, tmp_path: Path) -> None:
    build = LOADERS[kind]
    whole = run(tmp_path / "whole", build)
    broken = run(tmp_path / "broken", build, dies_in=5)  # saved after step 4, in mid-epoch
    random.random()
    broken |= run(tmp_path / "broken", build)
    assert broken == whole
    assert len({tuple(batch) for batch in whole.values()}) == 7
