"""A validation epoch against a hand-written evaluation loop with the same metrics.

Bars: at most 1.02 on the digits net, and 1.08 on two linear layers, whose batches are so short
that one sees what the bus itself costs; with ``inference_mode`` too. Rounds are interleaved; what
counts is the median of their ratios, which is the same from run to run to half a percent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from target import check_target
from torch import nn

from hatbus import Context, Trainer, hookimpl
from hatbus_validation.validation import Validation

LOSS = nn.functional.cross_entropy


class Accuracy:
    """The metric: right answers and samples, added up on the device."""

    def __init__(self) -> None:
        self.right, self.count = torch.zeros((), dtype=torch.int64), 0

    def update(self, outs: torch.Tensor, target: torch.Tensor) -> None:
        self.right += (outs.argmax(1) == target).sum()
        self.count += len(target)


class Measures:
    """The same as a callback."""

    @hookimpl
    def on_epoch_begin(self) -> None:
        self.accuracy, self.loss = Accuracy(), torch.zeros(())

    @hookimpl
    def on_batch_end(self, batch: Any, model_outs: torch.Tensor, losses: dict[str, Any]) -> None:
        self.accuracy.update(model_outs, batch[1])
        self.loss += losses["loss"]

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        ctx.log({"accuracy": self.accuracy.right / self.accuracy.count, "loss": self.loss})


def by_hand(model: nn.Module, data: Any, loss: Callable[..., torch.Tensor]) -> tuple[float, float]:
    """What people write."""
    model.eval()
    accuracy, total = Accuracy(), torch.zeros(())
    with torch.no_grad():
        for inputs, target in data:
            outs = model(inputs)
            total += loss(outs, target)
            accuracy.update(outs, target)
    model.train()
    return float(accuracy.right / accuracy.count), float(total)


def validating(model: nn.Module, data: Any, **options: Any) -> Callable[[], tuple[float, float]]:
    """A validation inside a run that is ready for it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    often = {"val_interval": None, "val_on_train_end": False}
    validation = Validation(data, callbacks=[Measures()], **often, **options)
    run = Trainer(model, optimizer, data[:1], LOSS, [validation])
    run.fit(num_steps=1)

    def validate() -> tuple[float, float]:
        found = run.ctx.emit.validate(run.ctx, "benchmark")
        return float(found["val/accuracy"]), float(found["val/loss"])

    return validate


def compare(name: str, model: nn.Module, data: Any, bar: float, rounds: int) -> bool:
    """CPU time of a validation over that of the loop by hand in the same round: the median."""
    ways = {
        "by hand": lambda: by_hand(model, data, LOSS),
        "hatbus": validating(model, data),
        "hatbus, inference_mode": validating(model, data, inference_mode=True),
    }
    took: dict[str, list[float]] = {who: [] for who in ways}
    order = list(ways)
    for _ in range(rounds):
        order.append(order.pop(0))
        found = set()
        for who in order:
            began = time.thread_time()
            found.add(ways[who]())
            took[who].append(time.thread_time() - began)
        assert len(found) == 1
    is_met = True
    hand = took.pop("by hand")
    for who, times in took.items():
        extra = median(one - other for one, other in zip(times, hand, strict=True))
        ratio = median(one / other for one, other in zip(times, hand, strict=True))
        print(f"{name}, {who}: {extra / len(data) * 1e6:+.1f} us a batch")
        is_met &= check_target(f"{name}, {who} / by hand", ratio, bar)
    return is_met


def digits_net() -> nn.Module:
    """As in docs/examples/digits."""

    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]

    body = [*conv(1, 32), *conv(32, 64), nn.MaxPool2d(2), *conv(64, 64), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(64 * 16, 10))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = [(torch.rand(64, 1, 8, 8), torch.randint(10, (64,))) for _ in range(6)]
    met = [compare("digits net, batches of 64", digits_net(), images, 1.02, 200)]
    small = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    rows = [(torch.rand(64, 64), torch.randint(10, (64,))) for _ in range(60)]
    met.append(compare("two linear layers, batches of 64", small, rows, 1.08, 1000))
    sys.exit(not all(met))
