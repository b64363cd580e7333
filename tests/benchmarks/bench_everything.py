"""A step with everything on, against a bare one and against the same duties written by hand.

A net of 1.3M parameters by AdamW, batches of 128, and of every step: the average of the weights, a
learning rate by schedule, gradients clipped by norm, a running loss and accuracy, five scalars to
TensorBoard; and a checkpoint of all of it every 200 steps. Whole runs in turn, in one process and
one thread of torch. Beside the clock's time stands the time that the processors worked, all threads
together: on a machine that does other things too, that is the steadier one.

By hand is what somebody writes who knows the best ways: ``_foreach_lerp_`` for the average, torch's
clipping, sums that stay tensors, ``SummaryWriter``, safetensors with ``fsync``. The parts stand
beside it, each alone on top of the bare step.

Bars: at most 1.15x of the bare step, and less than by hand:
``python tests/benchmarks/bench_everything.py [rounds]``.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
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

STEPS, BATCH, EVERY = 200, 128, 200
BAR = 1.15
LOSS = nn.functional.cross_entropy
Setup = tuple[nn.Module, torch.optim.Optimizer, list[tuple[torch.Tensor, torch.Tensor]]]


def parts() -> Setup:
    """The net, its optimizer and an epoch of batches."""
    torch.manual_seed(0)
    sizes = (256, 1024, 1024, 10)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    chance = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(BATCH, 256, generator=chance), torch.randint(10, (BATCH,), generator=chance))
        for _ in range(STEPS)
    ]
    return model, optimizer, data


def bare(_: Path) -> None:
    """Forward, backward, update."""
    model, optimizer, data = parts()
    for inputs, target in data:
        optimizer.zero_grad()
        LOSS(model(inputs), target).backward()
        optimizer.step()


def by_hand(folder: Path) -> None:
    """Everything, written out."""
    from safetensors.torch import save_file
    from torch.utils.tensorboard import SummaryWriter

    model, optimizer, data = parts()
    live = [one.detach() for one in model.parameters()]
    average = [one.clone() for one in live]
    parameters = list(model.parameters())
    writer = SummaryWriter(str(folder))
    running, right, count = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
    for step, (inputs, target) in enumerate(data):
        rate = 5e-4 * (1 + math.cos(math.pi * step / STEPS))
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
        str(folder / "c"), save_interval=EVERY, interval_by="step"
    ),
}


def hatbus(folder: Path, names: tuple[str, ...] = tuple(PLUGINS)) -> None:
    """The same by plugins."""
    plugins = {name: PLUGINS[name](folder) for name in names}
    trainer = Trainer(*parts(), LOSS, plugins)
    trainer.fit(num_epochs=1)


def main(rounds: int, names: list[str]) -> None:
    """Prints every way, its time, and target against measured."""
    torch.set_num_threads(1)
    ways: dict[str, Callable[[Path], None]] = {
        "bare": bare,
        "by hand": by_hand,
        "hatbus": hatbus,
        "hatbus, no plugin": partial(hatbus, names=()),
        **{f"only {name}": partial(hatbus, names=(name,)) for name in PLUGINS},
    }
    needed = {"bare", "by hand", "hatbus", *names}
    chosen = {name: way for name, way in ways.items() if not names or name in needed}
    clock: dict[str, list[float]] = {name: [] for name in chosen}
    worked: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, way in chosen.items():
            folder = Path(tempfile.mkdtemp())
            began, began_work = time.perf_counter(), time.process_time()
            way(folder)
            clock[name].append(time.perf_counter() - began)
            worked[name].append(time.process_time() - began_work)
            shutil.rmtree(folder)
    reached = {}
    for name in chosen:
        ratios = [
            statistics.median(a / b for a, b in zip(times[name], times["bare"], strict=True))
            for times in (clock, worked)
        ]
        reached[name] = ratios[0]
        least = [min(times[name]) / min(times["bare"]) for times in (clock, worked)]
        each = min(worked[name]) / STEPS * 1e3
        print(
            f"{name:20}{each:8.2f} ms a step; of bare, by the clock {ratios[0]:.3f}x "
            f"(best {least[0]:.3f}x), worked {ratios[1]:.3f}x (best {least[1]:.3f}x)"
        )
    check_target("a step with everything on / a bare one", reached["hatbus"], BAR)
    check_target("the same / a bare one, by hand", reached["hatbus"], reached["by hand"])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9, sys.argv[2:])
