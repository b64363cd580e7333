"""Batches in pinned memory are copied while the step before is computed, and arrive whole."""

from __future__ import annotations

import pytest
import torch
from gpu.on_device import DEVICE, batches, trainer
from torch.utils.data import TensorDataset

from hatbus.data.loaders import loader
from hatbus.data.moving import moved_ahead

pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="the host has no streams")


def test_every_batch_arrives_whole_although_memory_is_used_again() -> None:
    device = torch.device(DEVICE, torch.cuda.current_device())
    rows = torch.arange(40 * 500_000, dtype=torch.float32).view(40, -1)
    data = loader(TensorDataset(rows), 1, shuffle=False, seed=0, pin_memory=True)
    busy = torch.randn(2048, 2048, device=device)
    sums = []
    for (found,) in moved_ahead(iter(data), device):
        for _ in range(3):  # the host runs far ahead of the device
            busy = torch.tanh(busy @ busy)
        sums.append((found.double().sum(), found[0, 0]))
    expected = rows.double().sum(1)
    assert [total.item() for total, _ in sums] == expected.tolist()
    assert [first.item() for _, first in sums] == rows[:, 0].tolist()


def test_a_copy_does_not_wait_for_the_step_that_is_computed() -> None:
    device = torch.device(DEVICE, torch.cuda.current_device())
    big = [(torch.zeros(1 << 24).pin_memory(),) for _ in range(3)]
    stream = moved_ahead(iter(big), device)
    next(stream)
    torch.cuda.synchronize()
    torch.cuda._sleep(1 << 30)
    computed = torch.cuda.current_stream(device).record_event()
    (second,) = next(stream)  # it was copied before that step was queued
    assert not computed.query()
    torch.cuda.synchronize()
    assert second.shape == (1 << 24,)


@pytest.mark.parametrize("steps", [5, 11])
def test_a_run_trains_and_goes_on_as_without(steps: int) -> None:
    first = batches(1, size=64)[0]
    weights = []
    for pinned in (False, True):
        data = loader(TensorDataset(*first), 8, seed=0, pin_memory=pinned)
        run = trainer(data=data)
        run.fit(num_steps=steps)
        run.fit(num_steps=steps + 4)
        weights.append([one.detach().cpu() for one in run.ctx.model.parameters()])
    assert all(map(torch.equal, *weights))
