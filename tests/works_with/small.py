"""The models and data that pairs are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

STEPS = 6
"""Batches of an epoch."""
EPOCHS = 3


class Stack(nn.Sequential):
    """Matrices of some size, vectors, dropout, a batch norm: what is random and what is kept."""

    def __init__(self, inputs: int = 8, hidden: int = 64) -> None:
        super().__init__(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.Tanh(),
            nn.Dropout(0.1),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 1),
        )


class Plain(nn.Sequential):
    """Matrices and vectors, and nothing that is random."""

    def __init__(self, inputs: int = 8, hidden: int = 64) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 1))


def batches(count: int = STEPS, size: int = 4, width: int = 8) -> list[Any]:
    """Batches ``(inputs, target)``, the same every time."""
    chance = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, size, width, generator=chance)
    return list(zip(inputs, inputs.sum(2, keepdim=True).tanh(), strict=True))


class Rows(Dataset[Any]):
    """24 samples ``(inputs, target)``, with random augmentation by torch where it is asked for."""

    def __init__(self, *, noise: float = 0.0) -> None:
        inputs = [inputs for inputs, _ in batches()]
        self.inputs, self.noise = torch.cat(inputs), noise

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.inputs[index]
        if self.noise:
            inputs = inputs + self.noise * torch.rand(inputs.shape)
        return inputs, inputs.sum(0, keepdim=True).tanh()


def usual_parts(given: dict[str, Any]) -> dict[str, Any]:
    """The ``Trainer``'s arguments, with what a pair does not give."""
    parts = dict(given)
    parts.setdefault("model", None)
    if parts["model"] is None:
        parts["model"] = Stack()
    make = parts.pop("make", None)
    if make is not None:  # an optimizer, from the model
        parts["optimizer"] = make(parts["model"])
    if "optimizer" not in parts:
        parts["optimizer"] = torch.optim.AdamW(parts["model"].parameters(), lr=0.01)
    parts.setdefault("data", batches())
    parts.setdefault("loss", nn.functional.mse_loss)
    return parts


def folder_of(path: Path, name: str) -> str:
    """A folder of this name, made where it is missing."""
    found = path / name
    found.mkdir(parents=True, exist_ok=True)
    return str(found)
