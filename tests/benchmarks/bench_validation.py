"""A validation epoch against a hand-written evaluation loop with the same metrics.

Bar: at most 1.1 on the digits net. The small net shows what the bus itself costs per batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hatbus import Context, Trainer, hookimpl
from hatbus_validation.validation import Validation

ROUNDS = 200


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


def ratio(name: str, model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """CPU time of a validation over that of the loop by hand, each the best of its rounds."""
    loss = nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    validation = Validation(data, callbacks=[Measures()], val_interval=None, val_on_train_end=False)
    run = Trainer(model, optimizer, data[:1], loss, [validation])
    run.fit(num_steps=1)
    times: dict[str, list[float]] = {"hatbus": [], "by hand": []}
    for _ in range(ROUNDS):
        began = time.thread_time()
        found = run.ctx.emit.validate(run.ctx, "benchmark")
        times["hatbus"].append(time.thread_time() - began)
        began = time.thread_time()
        expected = by_hand(model, data, loss)
        times["by hand"].append(time.thread_time() - began)
        assert (float(found["val/accuracy"]), float(found["val/loss"])) == expected
    best = {who: min(values) for who, values in times.items()}
    result = best["hatbus"] / best["by hand"]
    extra = (best["hatbus"] - best["by hand"]) / len(data) * 1e6
    print(f"{name}: {result:.3f}x by hand, {extra:+.1f} us a batch")
    return result


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
    assert ratio("digits net, batches of 64", digits_net(), images) <= 1.1
    small = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    rows = [(torch.rand(64, 64), torch.randint(10, (64,))) for _ in range(60)]
    ratio("two linear layers, batches of 64", small, rows)
