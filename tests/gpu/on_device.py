"""Small real runs on the device under test, and a guard over steps that must not wait for it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from typing import Any, Final

import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.testing import Reads

DEVICE: Final = os.environ.get("HATBUS_GPU_TESTS_ON", "cuda")
SYNC: Final = "called a synchronizing CUDA operation"


def is_here() -> bool:
    """Whether the device under test is in this machine."""
    return DEVICE == "cpu" or torch.cuda.is_available()


class Net(nn.Module):
    """A convolution with batch norm, dropout, and a head for each of two tasks."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.a, self.b = nn.Linear(width, 4), nn.Linear(width, 4)

    def forward(self, inputs: torch.Tensor, task: str | None = None) -> torch.Tensor:
        hidden = self.stem(inputs).mean((2, 3))
        hidden = nn.functional.dropout(hidden, 0.2, self.training)
        return (self.b if task == "b" else self.a)(hidden)


class Pair(nn.Module):
    """A student and its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Net(), Net()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.teacher(inputs)
        return self.student(inputs)


def batches(count: int = 40, size: int = 8, seed: int = 0) -> list[Any]:
    """Images (size, 3, 6, 6) and classes (size,), on the host."""
    chance = torch.Generator().manual_seed(seed)
    images = torch.randn(count, size, 3, 6, 6, generator=chance)
    classes = torch.randint(0, 4, (count, size), generator=chance)
    return list(zip(images, classes, strict=True))


def trainer(plugins: Any = (), data: Any = None, **options: Any) -> Trainer:
    """A trainer of ``model()`` by SGD on the device; the same weights every time."""
    torch.manual_seed(0)
    model = options.pop("model", Net)()
    make = options.pop("optimizer", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    options = {"loss": nn.functional.cross_entropy, "device": DEVICE, "seed": 0, **options}
    found = batches() if data is None else data
    return Trainer(model, make(model.parameters()), found, plugins=plugins, **options)


class Losses:
    """Keeps every step's losses, on their device."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        self.found += [loss.detach() for loss in losses.values()]

    @property
    def numbers(self) -> list[float]:
        """The losses on the host."""
        return torch.stack([loss.float() for loss in self.found]).tolist()


class Waits:
    """Counts the waits for the device from one step to another, the fetch of batches included.

    Args:
        first: step from which on it counts.
        last: last step that counts.
        strict: raise at a wait, so that the error's note names the plugin.

    Attributes:
        count: waits so far.
    """

    def __init__(self, first: int = 4, last: int = 12, *, strict: bool = True) -> None:
        self.first, self.last, self.strict = first, last, strict
        self.count, self.steps = 0, 0
        self._reads = Reads(self._noted)
        self._heard: Any = None

    def watch(self, found: Trainer) -> Trainer:
        """Puts it around every step of a trainer."""
        found.bus.register(self, "core.waits", core=True, outermost=True)
        return found

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self, ctx: Any) -> Generator[None, Any, Any]:
        if ctx.global_step_id == self.first:
            self._begin()
        try:
            result = yield
        except BaseException:
            self._end()
            raise
        self.steps += self._is_on
        if ctx.global_step_id == self.last:
            self._end()
        return result

    @property
    def _is_on(self) -> bool:
        return self._heard is not None

    def _begin(self) -> None:
        self._heard = warnings.catch_warnings()
        self._heard.__enter__()
        if DEVICE == "cpu":
            self._reads.__enter__()
            return
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        warnings.filterwarnings("always", message=SYNC)
        warnings.showwarning = lambda message, *_, **__: self._noted(str(message))
        torch.cuda.set_sync_debug_mode("error" if self.strict else "warn")

    def _noted(self, what: str) -> None:
        if DEVICE != "cpu" and SYNC not in what:
            return
        self.count += 1
        if self.strict and DEVICE == "cpu":
            raise RuntimeError(f"{SYNC}: {what}")

    def _end(self) -> None:
        if not self._is_on:
            return
        if DEVICE == "cpu":
            self._reads.__exit__(None, None, None)
        else:
            torch.cuda.set_sync_debug_mode("default")
        self._heard.__exit__(None, None, None)
        self._heard = None


def states(found: Trainer) -> dict[str, Any]:
    """All that must be equal bit for bit in two runs that are the same."""
    ctx = found.ctx
    generators = {"torch": torch.get_rng_state()}
    if DEVICE == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state()
    return {
        "model": ctx.model.state_dict(),
        "optimizer": ctx.optimizer.state_dict()["state"],
        "scaler": None if ctx.scaler is None else ctx.scaler.state_dict(),
        "updates": ctx.updates,
        "random": generators,
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Fails unless two nested states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        assert one.device == other.device, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    else:
        assert one == other, where
