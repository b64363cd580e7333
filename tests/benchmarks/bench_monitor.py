"""What watching a run costs per step: metrics, statistics and progress.

Prints ratios and microseconds, all measured in turn in one process; the best of the rounds counts,
because noise only adds.

* ``Mean.update`` and torchmetrics' ``MeanMetric.update`` against one tensor addition in place.
* a metric's update through ``MetricUpdater`` on the bus against the bare update.
* the events of a step with the default set, its metric costing nothing, against a hand-written
  list of direct calls to the same objects.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from hatbus import Trainer
from hatbus_monitor.metric_updater import MetricUpdater
from hatbus_monitor.metrics import Mean
from hatbus_monitor.progress import Progress
from hatbus_monitor.stats_monitor import StatsMonitor

STEPS, ROUNDS = 2000, 15


class Counting:
    """A metric whose own update costs nothing, to see what is around it."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, value: Any) -> None:
        self.count += 1

    def compute(self) -> int:
        return self.count

    def reset(self) -> None:
        self.count = 0


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(4, 3), torch.ones(4, 1))] * STEPS


def loss_only(metrics: Any, batch: Any, model_outs: Any, losses: Any) -> None:
    metrics[0].update(losses["loss"])


def trainer(plugins: list[Any]) -> Trainer:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    mse = torch.nn.functional.mse_loss
    return Trainer(model, optimizer, batches(), mse, plugins, nan="ignore")


def default_set() -> list[Any]:
    """As a job has it, with a metric that costs nothing itself."""
    updater = MetricUpdater(loss_only, [Counting()], step_log_freq=10)
    return [updater, StatsMonitor(), Progress(display="plain")]


Step = Callable[[Any], None]


def through_the_bus(run: Trainer) -> Step:
    """The events of one step that anybody hears, as the loop emits them."""
    emit = run.bus.emitter()

    def step(ctx: Any) -> None:
        emit.on_batch_end(ctx)
        emit.on_step_end(ctx)

    return step


def by_hand(plugins: list[Any]) -> Step:
    """The same calls from a list that somebody wrote by hand."""
    updater, stats, progress = plugins

    def step(ctx: Any) -> None:
        updater.on_batch_end(ctx, ctx.batch, ctx.model_outs)
        updater.on_step_end(ctx)
        stats.on_step_end(ctx)
        progress.on_step_end(ctx, ctx.losses)

    return step


def watched(make: Callable[[Trainer, list[Any]], Step]) -> Callable[[], float]:
    """Microseconds of the events of one step, over a run of steps, the default set listening."""
    plugins = default_set()
    run = trainer(plugins)
    run.fit(num_steps=1)
    ctx, step = run.ctx, make(run, plugins)
    plugins[2].on_loop_begin(ctx)
    ctx.batches, ctx.losses = [(None, batches()[0], 1.0)], {"loss": torch.tensor(1.0)}

    def measure() -> float:
        began = time.perf_counter()
        for number in range(STEPS):
            ctx.global_step_id = number
            step(ctx)
        return (time.perf_counter() - began) / STEPS * 1e6

    return measure


def per_call(function: Callable[[], Any], calls: int = 1000) -> float:
    """Microseconds per call."""
    began = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - began) / calls * 1e6


def in_turn(measures: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """The best of each, measured in turn so that a noisy machine is noisy for all."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: min(values) for name, values in found.items()}


def measure_updates() -> None:
    value, total, own = torch.tensor(1.0), torch.zeros(()), Mean()
    measures = {
        "add_": lambda: per_call(lambda: total.add_(value)),
        "Mean.update": lambda: per_call(lambda: own.update(value)),
    }
    try:
        from torchmetrics import MeanMetric

        theirs = MeanMetric()
        measures["MeanMetric.update"] = lambda: per_call(lambda: theirs.update(value), 300)
    except ImportError:
        pass
    found = in_turn(measures, 3 * ROUNDS)
    for name, spent in found.items():
        print(f"{name:24} {spent:7.2f} us  {spent / found['add_']:6.2f} x add_")


def measure_steps() -> None:
    found = in_turn(
        {
            "the bus": watched(lambda run, plugins: through_the_bus(run)),
            "by hand": watched(lambda run, plugins: by_hand(plugins)),
        }
    )
    for name, spent in found.items():
        print(f"default set, {name}: {spent:.2f} us a step")
    print(f"default set: {found['the bus'] / found['by hand']:.2f} x the list by hand")


def measure_updater() -> None:
    for name, metric in (("Mean", Mean()), ("MeanMetric", mean_metric())):
        if metric is not None:
            found = in_turn(bare_and_bus(metric), 5 * ROUNDS)
            ratio = found["bus"] / found["bare"]
            print(f"{name} through the bus: {found['bus']:.2f} us, {ratio:.2f} x the bare update")


def bare_and_bus(metric: Any) -> dict[str, Callable[[], float]]:
    """The metric's update alone, and as the event of a run."""
    run = trainer([MetricUpdater(loss_only, [metric], step_log_freq=0, epoch_log_freq=0)])
    run.fit(num_steps=1)
    ctx = run.ctx
    ctx.emit, ctx.losses = run.bus.emitter(), {"loss": torch.tensor(1.0)}
    return {
        "bare": lambda: per_call(lambda: loss_only([metric], None, None, ctx.losses), 100),
        "bus": lambda: per_call(lambda: ctx.emit.on_batch_end(ctx), 100),
    }


def mean_metric() -> Any:
    try:
        from torchmetrics import MeanMetric
    except ImportError:
        return None
    return MeanMetric()


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure_updates()
    measure_updater()
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):  # the progress lines
        measure_steps()
