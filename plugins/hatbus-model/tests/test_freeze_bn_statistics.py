"""FreezeBNStatistics: every batch norm, at every time, and nothing but its statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus_model.freeze_bn_statistics import FreezeBNStatistics


class OwnNorm(nn.BatchNorm1d):
    pass


class TrainMode:
    """Puts the model to train mode in the middle of everything."""

    @hookimpl
    def on_batch_begin(self, model: nn.Module) -> None:
        model.train()


def run(*plugins: object) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), OwnNorm(4), nn.GroupNorm(2, 4), nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(5, 3, generator=generator), torch.zeros(5, 1))] * 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, optimizer, data, nn.functional.mse_loss, list(plugins)).fit(num_epochs=2)
    return model


@pytest.mark.parametrize("others", [[], [TrainMode()]])
def test_statistics_stay_and_weights_train(others: list[object]) -> None:
    model = run(FreezeBNStatistics(), *others)
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert model[1].num_batches_tracked.item() == 0
    assert not torch.equal(model[1].weight, torch.ones(4))
    assert model[0].training


def test_without_it_they_move() -> None:
    assert run()[1].num_batches_tracked.item() == 6


def test_sync_batch_norm_is_one_too() -> None:
    from hatbus_model.freezing import batch_norms

    norms = [nn.SyncBatchNorm(2), nn.BatchNorm3d(2), nn.InstanceNorm2d(2), nn.LayerNorm(2)]
    assert batch_norms(nn.Sequential(*norms)) == norms[:2]
