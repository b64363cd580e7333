"""What the whole trainer costs beyond the loop that everybody writes.

A tiny model (Linear(8, 8), SGD, batches in a list), one thread: a bare torch loop, the same loop
without its ``zero_grad()`` (torch takes 10 us for it, of which the trainer saves 8), the same loop
with 5 x 10 direct calls written into it, hatbus with no plugin, and hatbus with 5 plugins that do
nothing on each of 12 events, 10 of them in a step. Interleaved repetitions; a run of 50 steps is
subtracted from one of 450, so that starting a run does not count; the medians of the differences
are microseconds a step: ``python tests/benchmarks/bench_loop.py [repetitions]``.

Bars: at most 8 us a step with nothing enabled, at most 14 us with 5 plugins on 12 events.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import torch

from hatbus import Trainer, hookimpl

FEW, MANY = 50, 450
Run = Callable[[int], None]
EVENTS = (
    "on_step_begin",
    "on_batch_begin",
    "on_forward_begin",
    "on_forward_end",
    "on_backward_begin",
    "on_backward_end",
    "on_batch_end",
    "on_optimizer_step_begin",
    "on_optimizer_step_end",
    "on_step_end",
    "on_epoch_begin",
    "on_epoch_end",
)
BEFORE_FORWARD, BEFORE_BACKWARD, BEFORE_UPDATE = EVENTS[:3], EVENTS[3:5], EVENTS[5:8]
AFTER_UPDATE = EVENTS[8:10]


class Nothing:
    """Hears twelve events and does nothing."""


for _name in EVENTS:
    _names: dict[str, Any] = {}
    exec(f"def {_name}(self): pass", _names)
    setattr(Nothing, _name, hookimpl(_names[_name]))


def tiny() -> tuple[torch.nn.Module, torch.optim.Optimizer, list[Any], Any]:
    """Model, optimizer, batches, loss."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    data = [(torch.randn(4, 8), torch.randn(4, 8))] * 400
    return model, torch.optim.SGD(model.parameters(), lr=0.01), data, torch.nn.functional.mse_loss


def bare() -> Run:
    """The loop that everybody writes."""
    model, optimizer, data, loss_of = tiny()

    def run(steps: int) -> None:
        for inputs, target in islice(cycle(data), steps):
            optimizer.zero_grad()
            loss = loss_of(model(inputs), target)
            loss.backward()
            optimizer.step()

    return run


def bare_without_zero_grad() -> Run:
    """The same with gradients set to None by hand, as the trainer does: what is left to save."""
    model, optimizer, data, loss_of = tiny()
    parameters = list(model.parameters())

    def run(steps: int) -> None:
        for inputs, target in islice(cycle(data), steps):
            for parameter in parameters:
                parameter.grad = None
            loss = loss_of(model(inputs), target)
            loss.backward()
            optimizer.step()

    return run


def bare_with_calls() -> Run:
    """The same with the calls of 5 plugins written into it, a list per place."""
    model, optimizer, data, loss_of = tiny()
    plugins = [Nothing() for _ in range(5)]
    places = (BEFORE_FORWARD, BEFORE_BACKWARD, BEFORE_UPDATE, AFTER_UPDATE)
    first, second, third, fourth = (
        [getattr(p, name) for name in place for p in plugins] for place in places
    )

    def run(steps: int) -> None:
        for inputs, target in islice(cycle(data), steps):
            for call in first:
                call()
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = loss_of(outputs, target)
            for call in second:
                call()
            loss.backward()
            for call in third:
                call()
            optimizer.step()
            for call in fourth:
                call()

    return run


def hatbus(count: int, **options: Any) -> Run:
    """hatbus with ``count`` plugins."""
    model, optimizer, data, loss = tiny()
    plugins = {f"p{i}": Nothing() for i in range(count)}
    trainer = Trainer(model, optimizer, data, loss, plugins, **options)

    def run(steps: int) -> None:
        trainer.fit(num_steps=trainer.ctx.position.global_step + steps)

    return run


def microseconds(run: Run) -> float:
    """Time per step, without what starting costs."""
    took = []
    for steps in (FEW, MANY):
        gc.collect()
        began = time.perf_counter()
        run(steps)
        took.append(time.perf_counter() - began)
    return (took[1] - took[0]) / (MANY - FEW) * 1e6


def compare(runs: dict[str, Run], times: int) -> None:
    """Prints microseconds a step, and what each adds to the first."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(FEW)
    for _ in range(times):
        for name, run in runs.items():
            found[name].append(microseconds(run))
    base = next(iter(found.values()))
    print(f"{'':42}{'us a step':>10}{'added':>9}{'ratio':>8}")
    for name, values in found.items():
        median = statistics.median(values)
        added = statistics.median(v - b for v, b in zip(values, base, strict=True))
        print(f"{name:42}{median:10.1f}{added:9.1f}{median / statistics.median(base):8.2f}")


def main(times: int) -> None:
    """Compares hatbus with the loop that everybody writes."""
    runs = {
        "bare torch loop": bare(),
        "with gradients set to None by hand": bare_without_zero_grad(),
        "with 5 x 10 direct calls": bare_with_calls(),
        "hatbus, no plugin": hatbus(0),
        "hatbus, no plugin, nan='ignore'": hatbus(0, nan="ignore"),
        "hatbus, 5 plugins on 12 events": hatbus(5),
    }
    compare(runs, times)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 25)
