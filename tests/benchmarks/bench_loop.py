"""What the whole trainer costs beyond the loop that everybody writes.

A tiny model (Linear(8, 8), SGD, batches in a list), one thread: a bare torch loop, the same loop
with 5 x 12 direct calls written into it, hatbus with no plugin, and hatbus with 5 plugins that do
nothing on each of 12 events. Interleaved repetitions; the differences of medians are microseconds
a step: ``python tests/benchmarks/bench_loop.py [repetitions]``.

Bars: at most 8 us a step with nothing enabled, at most 14 us with 5 plugins on 12 events.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from hatbus import Trainer, hookimpl

STEPS = 400
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
    data = [(torch.randn(4, 8), torch.randn(4, 8))] * STEPS
    return model, torch.optim.SGD(model.parameters(), lr=0.01), data, torch.nn.functional.mse_loss


def bare() -> Callable[[], None]:
    """The loop that everybody writes."""
    model, optimizer, data, loss_of = tiny()

    def run() -> None:
        for inputs, target in data:
            optimizer.zero_grad()
            loss = loss_of(model(inputs), target)
            loss.backward()
            optimizer.step()

    return run


def bare_with_calls() -> Callable[[], None]:
    """The same with the calls of 5 plugins written into it, a list per place."""
    model, optimizer, data, loss_of = tiny()
    plugins = [Nothing() for _ in range(5)]
    places = (BEFORE_FORWARD, BEFORE_BACKWARD, BEFORE_UPDATE, AFTER_UPDATE)
    first, second, third, fourth = (
        [getattr(p, name) for name in place for p in plugins] for place in places
    )

    def run() -> None:
        for inputs, target in data:
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


def hatbus(count: int, **options: Any) -> Callable[[], None]:
    """hatbus with ``count`` plugins."""
    model, optimizer, data, loss = tiny()
    plugins = {f"p{i}": Nothing() for i in range(count)}
    trainer = Trainer(model, optimizer, data, loss, plugins, **options)

    def run() -> None:
        trainer.fit(num_steps=trainer.ctx.position.global_step + STEPS)

    return run


def main(times: int) -> None:
    """Prints microseconds a step, and what each adds to the bare loop."""
    torch.set_num_threads(1)
    runs = {
        "bare torch loop": bare(),
        "with 5 x 10 direct calls": bare_with_calls(),
        "hatbus, no plugin": hatbus(0),
        "hatbus, no plugin, nan='ignore'": hatbus(0, nan="ignore"),
        "hatbus, 5 plugins on 12 events": hatbus(5),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(times):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            found[name].append((time.perf_counter() - began) / STEPS * 1e6)
    base = found["bare torch loop"]
    print(f"{'':34}{'us a step':>10}{'added':>9}{'ratio':>8}")
    for name, values in found.items():
        median = statistics.median(values)
        added = statistics.median(v - b for v, b in zip(values, base, strict=True))
        print(f"{name:34}{median:10.1f}{added:9.1f}{median / statistics.median(base):8.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 25)
