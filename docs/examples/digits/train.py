"""A small convolutional net on real handwritten digits: what a job's entry function looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hatbus.data import loader

HERE = Path(__file__).parent
HELD_OUT = 5
"""Every fifth of the 1,797 images is held out: 360 that the training never sees."""


def build(batch_size: int = 64, lr: float = 0.05, num_workers: int = 0) -> dict[str, Any]:
    """Everything the trainer needs; keys that it does not know are for plugins (``"@..."``)."""
    torch.set_num_threads(1)  # so small a net is slower with more
    train, held_out = read_digits()
    model = Net()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    return {
        "model": model,
        "optimizer": optimizer,
        "data": loader(train, batch_size, num_workers=num_workers),
        "loss": nn.functional.cross_entropy,
        "val_loader": loader(held_out, 256, shuffle=False),
    }


def read_digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and held-out part: images of shape (n, 1, 8, 8) in 0..1, and labels (n,)."""
    table = np.loadtxt(HERE / "digits.csv.gz", delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :64]).reshape(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(table[:, 64]).long()
    held_out = torch.arange(len(labels)) % HELD_OUT == 0
    return (
        TensorDataset(images[~held_out], labels[~held_out]),
        TensorDataset(images[held_out], labels[held_out]),
    )


class Net(nn.Module):
    """Three convolutions and a linear layer; (n, 1, 8, 8) to scores (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *conv(1, 32),
            *conv(32, 64),
            nn.MaxPool2d(2),
            *conv(64, 64),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of the ten digits."""
        return self.head(self.backbone(images))


def conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution with batch norm and ReLU."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def correct(metrics: Any, batch: Any, model_outs: torch.Tensor) -> None:
    """Feeds the metrics of a ``MetricUpdater``: predictions and labels."""
    for metric in metrics:
        metric.update(model_outs.argmax(dim=1), batch[1])
