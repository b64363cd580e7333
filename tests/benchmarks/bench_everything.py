"""A step with everything on, against a bare one and against the same duties written by hand.

A net of 1.3M parameters by AdamW, batches of 128, and of every step: the average of the weights, a
learning rate by schedule, gradients clipped by norm, a running loss and accuracy, five scalars to
TensorBoard; and a checkpoint of all of it every 200 steps. In one process and one thread of torch.

By hand is what somebody writes who knows the best ways: ``_foreach_lerp_`` for the average, torch's
clipping, sums that stay tensors, ``SummaryWriter``, safetensors with ``fsync``; hatbus writes its
checkpoint in the background (``async_save``). The parts stand
beside it, each alone on top of the bare step. All of it twice: with AdamW as torch makes it, and
with its fused one, whose shorter step leaves the rest a larger share.

All ways run side by side, each in a thread of its own, and take turns of ten steps: so all see the
same machine, whose speed may change by a third within seconds. A figure is the median of the ratios
of turns next to each other; what the turns with a checkpoint take longer is added by their share.

Bars: at most 1.15x of the bare step, and less than by hand:
``python tests/benchmarks/bench_everything.py [turns] [ways]``.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from target import check_target
from torch import nn

from hatbus import Trainer
from hatbus.callbacks import (
    Checkpoint,
    CosLrUpdater,
    ExponentialMovingAverage,
    GradClip,
    MetricUpdater,
    TensorBoard,
)

TURN, BATCH, EVERY = 10, 128, 200
BAR = 1.15
LOSS = nn.functional.cross_entropy
Data = Collection[tuple[torch.Tensor, torch.Tensor]]
Way = Callable[[Data, Path], None]
is_fused: bool | None = None
"""Whether the ways' optimizers are fused; None: as torch makes them."""


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The net and its optimizer."""
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise((256, 1024, 1024, 10))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=is_fused)


def bare(data: Data, _: Path) -> None:
    """Forward, backward, update."""
    model, optimizer = parts()
    for inputs, target in data:
        optimizer.zero_grad()
        LOSS(model(inputs), target).backward()
        optimizer.step()


def by_hand(data: Data, folder: Path) -> None:
    """Everything, written out."""
    from safetensors.torch import save_file
    from torch.utils.tensorboard import SummaryWriter

    model, optimizer = parts()
    live = [one.detach() for one in model.parameters()]
    average = [one.clone() for one in live]
    parameters = list(model.parameters())
    writer = SummaryWriter(str(folder))
    running, right, count = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
    for step, (inputs, target) in enumerate(data):
        rate = 5e-4 * (1 + math.cos(math.pi * step / len(data)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        outs = model(inputs)
        loss = LOSS(outs, target)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, live, 0.001)
        running += loss.detach()
        right += (outs.detach().argmax(1) == target).sum()
        count += len(target)
        scalars = {"loss": loss, "mean": running / (step + 1), "accuracy": right / count}
        for name, value in {**scalars, "norm": norm, "lr": rate}.items():
            writer.add_scalar(name, value, step)
        if (step + 1) % EVERY == 0:
            state = dict(model.state_dict())
            state |= {f"ema.{n}": v for n, v in zip(model.state_dict(), average, strict=True)}
            for index, kept in optimizer.state_dict()["state"].items():
                state |= {f"{index}.{name}": value for name, value in kept.items()}
            save_file(state, str(folder / "checkpoint.safetensors"))
            with (folder / "checkpoint.safetensors").open("rb") as file:
                os.fsync(file.fileno())
    writer.close()


PLUGINS: dict[str, Callable[[Path], object]] = {
    "ema": lambda _: ExponentialMovingAverage(0.999, 0),
    "lr": lambda _: CosLrUpdater(),
    "clip": lambda _: GradClip(1.0, log_interval=1),
    "metrics": lambda _: MetricUpdater(metrics=["loss", "accuracy"]),
    "tensorboard": lambda folder: TensorBoard(str(folder / "tb")),
    "checkpoint": lambda folder: Checkpoint(
        str(folder / "c"), save_interval=EVERY, interval_by="step", async_save=True
    ),
}


def hatbus(data: Data, folder: Path, names: tuple[str, ...] = tuple(PLUGINS)) -> None:
    """The same by plugins."""
    plugins = {name: PLUGINS[name](folder) for name in names}
    Trainer(*parts(), data, LOSS, plugins).fit(num_epochs=1)


class Turns:
    """Lets several ways run, one at a time and ``TURN`` steps each, and notes how long they took.

    Attributes:
        took: per way, the seconds of its turns.
    """

    def __init__(self, ways: dict[str, Way], count: int) -> None:
        self.took: dict[str, list[float]] = {name: [] for name in ways}
        self.count = count
        self._ways, self._order = ways, list(ways)
        self._goes = {name: threading.Event() for name in ways}
        chance = torch.Generator().manual_seed(1)
        self._inputs = torch.randn(EVERY, BATCH, 256, generator=chance)
        self._targets = torch.randint(10, (EVERY, BATCH), generator=chance)

    def take(self) -> None:
        """All of them; each in a folder of its own."""
        with tempfile.TemporaryDirectory() as folder:
            places = {name: Path(folder) / str(place) for place, name in enumerate(self._order)}
            threads = [threading.Thread(target=self._run, args=one) for one in places.items()]
            for thread in threads:
                thread.start()
            self._goes[self._order[0]].set()
            for thread in threads:
                thread.join()

    def batches(self, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Those of a way, which lets the next one go on after each turn."""
        for turn in range(self.count):
            began = time.perf_counter()
            for step in range(turn * TURN, (turn + 1) * TURN):
                yield self._inputs[step % EVERY], self._targets[step % EVERY]
            self.took[name].append(time.perf_counter() - began)
            self._pass_on(name)
            self._wait(name)

    def _run(self, name: str, folder: Path) -> None:
        self._wait(name)
        folder.mkdir()
        try:
            self._ways[name](Batches(self, name), folder)
        finally:
            self._pass_on(name)
            self._order.remove(name)

    def _wait(self, name: str) -> None:
        self._goes[name].wait()
        self._goes[name].clear()

    def _pass_on(self, name: str) -> None:
        following = self._order[(self._order.index(name) + 1) % len(self._order)]
        self._goes[following].set()


class Batches(Collection[tuple[torch.Tensor, torch.Tensor]]):
    """A way's batches."""

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns, self._name = turns, name

    def __len__(self) -> int:
        return self._turns.count * TURN

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self._turns.batches(self._name)

    def __contains__(self, _: object) -> bool:
        return False


def share(took: list[float], bare: list[float]) -> float:
    """A way's time of the bare one's: of the usual turn, and what a checkpoint adds to it.

    A checkpoint is written at a turn's end, or at the begin of the next where a loop reads ahead.
    """
    period = EVERY // TURN
    ratios = [one / other for one, other in zip(took, bare, strict=True)]
    around = range(period, len(ratios), period)
    usual = statistics.median(
        ratio for n, ratio in enumerate(ratios) if n > 1 and (n + 1) % period > 1
    )
    longer = [ratios[n - 1] + ratios[n] - 2 * usual for n in around]
    return usual + (statistics.median(longer) / period if longer else 0)


def main(turns: int, names: list[str]) -> None:
    """Prints every way, its time, and target against measured."""
    global is_fused
    torch.set_num_threads(1)
    logging.getLogger("hatbus").setLevel(logging.ERROR)
    only: dict[str, Way] = {f"only {name}": partial(hatbus, names=(name,)) for name in PLUGINS}
    ways: dict[str, Way] = {"bare": bare, "by hand": by_hand, "hatbus": hatbus}
    ways |= {"hatbus, no plugin": partial(hatbus, names=()), **only}
    needed = {"bare", "by hand", "hatbus", *names}
    for is_fused in (None, True):
        taken = Turns({n: way for n, way in ways.items() if not names or n in needed}, turns)
        taken.take()
        shares = {name: share(took, taken.took["bare"]) for name, took in taken.took.items()}
        kind = "fused AdamW" if is_fused else "AdamW"
        for name, took in taken.took.items():
            each = statistics.median(took) / TURN * 1e3
            print(f"{kind}: {name:20}{each:8.2f} ms a step, of bare {shares[name]:.3f}x")
        check_target(f"{kind}, a step with everything on / a bare one", shares["hatbus"], BAR)
        check_target(f"{kind}, the same / by hand", shares["hatbus"] / shares["by hand"], 1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 80, sys.argv[2:])
