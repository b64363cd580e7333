"""What watching a run costs: the default set on the tiny model of ``bench_loop.py``.

The set, as a job names it: progress, statistics, a metric (the mean of the loss), the learning rate
and TensorBoard every 10 steps, with every other option at its default. Whole runs of 1,000 steps in
5 epochs, in turn: hatbus with nothing enabled, with the metric's own update and nothing else, with
each plugin alone, with the set, with the set publishing every 10 steps only, and with the set under
``--profile``: ``python tests/benchmarks/bench_default_set.py [rounds]``.

Every step is timed from one batch to the next. Of the steps with the same last digit the median is
taken (other programs interrupt a few of them), and the mean of the ten medians is microseconds a
step. What opening and closing the run's files takes stands beside it.

Bars: the set costs at most 40 us a step beyond the metric's own update, and what the profile says
of the plugins, with what the same events cost when nobody does anything in them, is within 10 % of
what the set was seen to cost.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bench_loop import tiny

from hatbus import Trainer, hookimpl
from hatbus.insight.profile import Profile
from hatbus_lr import CosLrUpdater
from hatbus_monitor.metric_updater import MetricUpdater
from hatbus_monitor.metrics import Mean
from hatbus_monitor.progress import Progress
from hatbus_monitor.stats_monitor import StatsMonitor
from hatbus_monitor.update_functions import usual
from hatbus_tensorboard.tensorboard import TensorBoard

EPOCHS, STEPS = 5, 200
BAR, ACCOUNTED = 40.0, 0.1
SET = ("metrics", "lr", "stats", "progress", "tensorboard")
LATER = {"metrics": {"step_log_freq": 10}, "lr": {"step_log_interval": 10}}
"""Options of a job that publishes every 10 steps only."""


class OnlyTheMetric:
    """What a metric costs by itself."""

    def __init__(self) -> None:
        self.metric = Mean("loss")

    @hookimpl
    def on_batch_end(self, losses: dict[str, torch.Tensor]) -> None:
        self.metric.update(losses["loss"])


class Idle:
    """Hears what the set hears, and does nothing: what the events themselves cost."""

    @hookimpl
    def on_step_begin(self, ctx: Any, optimizer: Any) -> None: ...

    @hookimpl
    def on_batch_end(self, ctx: Any, batch: Any, model_outs: Any, losses: Any) -> None: ...

    @hookimpl
    def on_step_end(self, ctx: Any, losses: Any) -> None: ...


class Stamped:
    """Batches that note when each was taken."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.times: list[list[float]] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        times: list[float] = []
        self.times.append(times)
        for batch in self.batches:
            times.append(time.perf_counter())
            yield batch
        times.append(time.perf_counter())


class Measured:
    """Every run of one kind.

    Attributes:
        steps: microseconds of every step, by the last digit of its number.
        ends: milliseconds before the first step and after the last one, per run.
        profiles: of the runs, if they were profiled.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        options: dict[str, dict[str, Any]] | None = None,
        *,
        profiled: bool = False,
    ) -> None:
        self.names, self.options, self.profiled = names, options or {}, profiled
        self.steps: dict[int, list[float]] = defaultdict(list)
        self.ends: list[float] = []
        self.profiles: list[Profile] = []

    def run(self) -> None:
        """Makes one run."""
        folder = tempfile.mkdtemp()
        model, optimizer, batches, loss = tiny()
        data = Stamped(batches[:STEPS])
        plugins = {name: made(name, folder, self.options) for name in self.names}
        trainer = Trainer(model, optimizer, data, loss, plugins)
        if self.profiled:
            self.profiles.append(Profile())
            self.profiles[-1].watch(trainer.bus)
        began = time.perf_counter()
        trainer.fit(num_epochs=EPOCHS)
        ended = time.perf_counter()
        shutil.rmtree(folder)
        self.ends.append((data.times[0][0] - began + ended - data.times[-1][-1]) * 1e3)
        for times in data.times:
            for index, (first, second) in enumerate(pairwise(times)):
                self.steps[index % 10].append((second - first) * 1e6)

    def per_step(self) -> float:
        """Microseconds."""
        return statistics.mean(map(statistics.median, self.steps.values()))


def made(name: str, folder: str, options: dict[str, dict[str, Any]]) -> object:
    """A plugin of the set."""
    more = options.get(name, {})
    makers: dict[str, Callable[[], object]] = {
        "own_update": OnlyTheMetric,
        "idle": Idle,
        "metrics": lambda: MetricUpdater(usual, ["loss"], **more),
        "lr": lambda: CosLrUpdater(warmup_len=100, **more),
        "stats": StatsMonitor,
        "progress": lambda: Progress(display="plain"),
        "tensorboard": lambda: TensorBoard(folder, update_freq=10),
    }
    return makers[name]()


def main(rounds: int) -> None:
    """Prints microseconds a step, and what each adds to the run with nothing enabled."""
    torch.set_num_threads(1)
    runs = {
        "no plugin": Measured(()),
        "the metric's own update": Measured(("own_update",)),
        "the events by themselves": Measured(("idle",)),
        **{f"only {name}": Measured((name,)) for name in SET},
        "the default set": Measured(SET),
        "published every 10 steps": Measured(SET, LATER),
        "the default set, profiled": Measured(SET, profiled=True),
    }
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):  # the progress lines
        for _ in range(rounds):
            for measured in runs.values():
                measured.run()
    base = runs["no plugin"].per_step()
    print(f"{'':28}{'us a step':>10}{'added':>8}{'ends, ms':>10}")
    for name, measured in runs.items():
        spent = measured.per_step()
        print(f"{name:28}{spent:10.1f}{spent - base:8.1f}{min(measured.ends):10.1f}")
    cost = runs["the default set"].per_step()
    net = cost - runs["the metric's own update"].per_step()
    print(f"the set, the metric's own update apart: {net:.1f} us a step (bar {BAR:g})")
    events = runs["the events by themselves"].per_step() - base
    account(runs["the default set, profiled"].profiles, events, cost - base)


def account(profiles: list[Profile], events: float, cost: float) -> None:
    """Prints what the profile says of every plugin, and how much of the cost that explains."""
    spent: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for profile in profiles:
        for plugin, event, turn, own in calls_in(profile):
            spent[plugin][event, turn].append(own)
    total = 0.0
    for name in SET:
        each = sum(map(statistics.median, spent[name].values())) / 10
        total += each
        print(f"profile: {name:12}{each:8.1f} us a step")
    explained = (total + events) / cost
    print(f"profile: all plugins {total:.1f} us, {total / cost:.2f} of what the set costs")
    print(
        f"with the events themselves {explained:.2f} (bar {1 - ACCOUNTED:g} to {1 + ACCOUNTED:g})"
    )


def calls_in(profile: Profile) -> Iterator[tuple[str, str, int, float]]:
    """Plugin, event, number of the call in ten steps, and microseconds of its own.

    From the trace, for the calls of events that come in every step; a call's own time is without
    the calls inside it, which the trace holds before it.
    """
    with tempfile.NamedTemporaryFile() as file:
        profile.write_trace(Path(file.name))
        calls = json.loads(Path(file.name).read_text("utf-8"))["traceEvents"]
    seen: Counter[tuple[str, str]] = Counter()
    inner: list[tuple[float, float]] = []  # of calls that are over, when each began and took
    for call in calls:
        key, began, took = (call["name"], call["cat"]), call["ts"], call["dur"]
        inside = 0.0
        while inner and inner[-1][0] >= began:
            inside += inner.pop()[1]
        inner.append((began, took))
        per_step = profile.costs[key].calls // profile.steps
        if per_step:
            yield *key, seen[key] % (10 * per_step), took - inside
        seen[key] += 1


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
