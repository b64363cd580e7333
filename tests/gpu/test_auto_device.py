"""A trainer that is told no device takes the one under test, and leaves a model that is there."""

from __future__ import annotations

import torch
from gpu.on_device import DEVICE, Net, batches
from torch import nn

from hatbus import Trainer


def test_model_state_and_batches_are_where_auto_says() -> None:
    for first in (DEVICE, "cpu"):
        model = Net().to(first)
        optimizer = torch.optim.Adam(model.parameters())
        Trainer(model, optimizer, batches(), nn.functional.cross_entropy, device=first).fit(
            num_steps=1
        )
        Trainer(model, optimizer, batches(), nn.functional.cross_entropy).fit(num_steps=1)
        assert {p.device.type for p in model.parameters()} == {DEVICE}
        kept = optimizer.state[next(model.parameters())]
        assert kept["exp_avg"].device.type == DEVICE
