"""The mean loss of a validation counts every sample once, whatever batches are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from validated import batches, trainer

from hatbus_validation.validation import Validation


def pairs(rows: list[tuple[torch.Tensor, float]]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Samples of different lengths stay a list."""
    return [x for x, _ in rows], torch.tensor([y for _, y in rows])


class Means(torch.nn.Module):
    """The mean of every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, samples: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([sample.mean() for sample in samples]) + self.bias


def test_the_mean_loss_counts_samples_of_different_lengths_once_each() -> None:
    rows = [(torch.full((n,), float(n)), 0.0) for n in (100, 3, 5, 2, 1)]
    data: Any = DataLoader(rows, 2, collate_fn=pairs)
    run = trainer(Validation(data), data=data, model=Means())
    assert run.ctx.optimizer is not None
    run.ctx.optimizer.param_groups[0]["lr"] = 0.0
    expected = sum(n * n for n in (100, 3, 5, 2, 1)) / 5
    assert float(run.fit(num_steps=1).latest["val/loss"]) == pytest.approx(expected)


def test_a_batch_without_samples_does_not_count() -> None:
    full, empty = batches(2), (torch.zeros(0, 3), torch.zeros(0, 1))
    with_it = trainer(Validation([full[0], empty, full[1]])).fit(num_steps=1).latest["val/loss"]
    without = trainer(Validation(full)).fit(num_steps=1).latest["val/loss"]
    assert float(with_it) == float(without)
    assert "val/loss" not in trainer(Validation([empty])).fit(num_steps=1).latest
