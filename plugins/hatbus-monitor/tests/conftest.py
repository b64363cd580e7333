"""What the tests of this distribution start from: small real runs on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hatbus import Trainer, hookimpl

torch.set_num_threads(1)


def classes(count: int = 6, size: int = 8, seed: int = 0) -> list[tuple[Any, Any]]:
    """``count`` batches of a problem with three classes."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, 5, generator=chance)
    return list(zip(x, x[..., :3].argmax(2), strict=True))


class Events:
    """Writes down what is published, and what the losses are."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, Any]]] = []
        self.losses: list[float] = []

    @hookimpl
    def on_log(self, ctx: Any, logs: dict[str, Any]) -> None:
        self.logs.append((ctx.global_step_id, dict(logs)))

    @hookimpl
    def on_step_end(self, losses: dict[str, Any]) -> None:
        self.losses.append(sum(loss.item() for loss in losses.values()))

    def of(self, name: str) -> list[tuple[int, float]]:
        """Step and value of everything published under a name."""
        return [(step, float(logs[name])) for step, logs in self.logs if name in logs]


@pytest.fixture
def data() -> Callable[..., list[tuple[Any, Any]]]:
    return classes


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    """Builds a trainer of a small net; the same weights every time."""

    def build(plugins: Any = (), data: Any = None, **options: Any) -> Trainer:
        torch.manual_seed(0)
        model = options.pop("model", None) or nn.Sequential(
            nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.1))
        loss = options.pop("loss", nn.functional.cross_entropy)
        given = classes() if data is None else data
        return Trainer(model, optimizer, given, loss, plugins, **options)

    return build


class Reads(TorchDispatchMode):
    """Counts how often a value is read from a tensor: what would wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads() -> Iterator[Reads]:
    with Reads() as counter:
        yield counter
