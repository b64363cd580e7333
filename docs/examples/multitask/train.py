"""Two tasks on one backbone: which digit it is, and by how much the image was turned."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hatbus.data import OneTask, loader

DIGITS = Path(__file__).parent.parent / "digits" / "digits.csv.gz"
HELD_OUT = 5
TURNS = (0, 90, 180, 270)


def build(batch_size: int = 32, lr: float = 0.05) -> dict[str, Any]:
    """Everything the trainer needs; a loader per task, and one task in every step."""
    torch.set_num_threads(1)  # so small a net is slower with more
    images, labels = read_digits()
    turned, turns = turn(images)
    held_out = torch.arange(len(labels)) % HELD_OUT == 0
    parts = {"digit": (images, labels), "turn": (turned, turns)}
    model = TwoHeads()
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4),
        "data": {
            task: loader(TensorDataset(x[~held_out], y[~held_out]), batch_size)
            for task, (x, y) in parts.items()
        },
        "loss": nn.functional.cross_entropy,
        "task_sampler": OneTask(),
        "val_loaders": {
            task: loader(TensorDataset(x[held_out], y[held_out]), 256, shuffle=False)
            for task, (x, y) in parts.items()
        },
    }


def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of shape (n, 1, 8, 8) in 0..1, and labels (n,)."""
    with gzip.open(DIGITS, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    return table[:, :64].reshape(-1, 1, 8, 8) / 16, table[:, 64].long()


def turn(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every image turned by 0, 90, 180 or 270 degrees, and which of the four it was."""
    turns = torch.randint(len(TURNS), (len(images),), generator=torch.Generator().manual_seed(0))
    turned = [torch.rot90(image, int(k), (1, 2)) for image, k in zip(images, turns, strict=True)]
    return torch.stack(turned), turns


class TwoHeads(nn.Module):
    """A backbone and a head per task; (n, 1, 8, 8) to scores (n, 10) or (n, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *conv(1, 32), *conv(32, 64), nn.MaxPool2d(2), *conv(64, 64), nn.Flatten()
        )
        self.heads = nn.ModuleDict(
            {"digit": nn.Linear(64 * 4 * 4, 10), "turn": nn.Linear(64 * 4 * 4, len(TURNS))}
        )

    def forward(self, images: torch.Tensor, task: str) -> torch.Tensor:
        """Scores of one task's classes."""
        scores: torch.Tensor = self.heads[task](self.backbone(images))
        return scores


def conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution with batch norm and ReLU."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def correct(metrics: Any, batch: Any, model_outs: torch.Tensor) -> None:
    """Feeds the metrics of a ``MetricUpdater``: predictions and labels."""
    for metric in metrics:
        metric.update(model_outs.argmax(dim=1), batch[1])
