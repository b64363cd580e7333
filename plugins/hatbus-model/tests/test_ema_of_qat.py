"""Averages of a model that imitates quantisation: weights are averaged, ranges are copied."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from hatbus import hookimpl
from hatbus.testing import tiny_trainer
from hatbus_model.ema import ExponentialMovingAverage

torch.set_num_threads(1)


def qat() -> nn.Module:
    """torch's own, with a scale per channel; its ranges take their shape in the first forward."""
    tool: Any = torch.ao.quantization
    torch.manual_seed(0)
    model = tool.QuantWrapper(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))).train()
    model.qconfig = tool.get_default_qat_qconfig("x86")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared: nn.Module = tool.prepare_qat(model)
    return prepared


def test_weights_are_averaged_and_ranges_are_those_of_the_model() -> None:
    weights: list[torch.Tensor] = []

    class Notes:
        @hookimpl
        def on_optimizer_step_end(self, model: Any) -> None:
            weights.append(model.module[0].weight.detach().clone())

    model: Any = qat()
    first = model.module[0].weight.detach().clone()
    trainer = tiny_trainer([ExponentialMovingAverage(0.9, 0), Notes()], model=model)
    trainer.fit(num_epochs=2)
    expected = first
    for weight in weights:
        expected = 0.9 * expected + 0.1 * weight
    live = {n: v.clone() for n, v in model.named_buffers()}
    with trainer.ctx.weights.showing("ema"):
        assert torch.allclose(model.module[0].weight, expected, atol=1e-6)
        shown = dict(model.named_buffers())
        assert all(torch.equal(shown[name], value) for name, value in live.items())
