"""What an event costs: frozen dispatch against direct calls written by hand, and against pluggy.

Twelve events a step. By hand there are two ways: a flat list of callables per event, called in a
loop (what a callback system without overhead does), and every call of the step written out in one
function (what nobody can do who does not know the plugins; the physical limit). Medians of
interleaved repetitions, one thread: ``python tests/benchmarks/bench_dispatch.py [repetitions]``.

Bars: 5 plugins on every event, and 20 plugins on 2 of 12 events each: at most 1.3x a flat list.
4 tasks with 5 plugins each: at most 1.5x the cost of 5 plugins without tasks.
An event that nobody listens to: at most 30 ns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from hatbus import Bus, hookimpl
from hatbus.loop.context import Context

EVENTS = (
    "on_epoch_begin",
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
    "on_epoch_end",
)
STEPS = 2000


def plugin_on(events: tuple[str, ...]) -> Any:
    """A plugin that does nothing, with two arguments, on the given events."""

    def method(name: str) -> Any:
        names: dict[str, Any] = {}
        exec(f"def {name}(self, global_step_id, optimizer): pass", names)
        return hookimpl(names[name])

    return type("Nothing", (), {name: method(name) for name in events})()


def flat_lists(plugins: dict[str, Any]) -> Callable[[Any], None]:
    """One step: a list of callables per event."""
    lists = [[getattr(p, e) for p in plugins.values() if hasattr(p, e)] for e in EVENTS]

    def step(ctx: Any) -> None:
        for calls in lists:
            g, o = ctx.global_step_id, ctx.optimizer
            for call in calls:
                call(g, o)

    return step


def written_out(plugins: dict[str, Any]) -> Callable[[Any], None]:
    """One step: every call written out."""
    names: dict[str, Any] = {}
    lines = ["def step(ctx):"]
    for event in EVENTS:
        listening = [n for n in plugins if hasattr(plugins[n], event)]
        if listening:
            lines += ["    g = ctx.global_step_id", "    o = ctx.optimizer"]
        for name in listening:
            names[f"{event}_{name}"] = getattr(plugins[name], event)
            lines.append(f"    {event}_{name}(g, o)")
    exec("\n".join([*lines, "    return None"]), names)
    step: Callable[[Any], None] = names["step"]
    return step


def frozen(events: tuple[str, ...] = EVENTS) -> Callable[[Any], None]:
    """One step through the bus, as the loop emits it."""
    lines = ["def step(ctx):", "    emit = ctx.emit"]
    for event in events:
        lines += [f"    f = emit.{event}", "    if f is not None: f(ctx)"]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    step: Callable[[Any], None] = names["step"]
    return step


def through_pluggy(bus: Bus) -> Callable[[Any], None]:
    """One step through pluggy's own callers."""
    bus.freeze()
    hooks = [getattr(bus._manager.hook, event) for event in EVENTS]
    arguments = dict.fromkeys(_all_arguments())

    def step(ctx: Any) -> None:
        for hook in hooks:
            hook(**arguments)

    return step


def _all_arguments() -> list[str]:
    from hatbus.events.payload import BATCH

    return list(BATCH)


def microseconds(step: Callable[[Any], None], ctx: Any, steps: int = STEPS) -> float:
    """Time per step."""
    began = time.perf_counter()
    for _ in range(steps):
        step(ctx)
    return (time.perf_counter() - began) / steps * 1e6


def medians(steps: dict[str, tuple[Callable[[Any], None], Any]], times: int) -> dict[str, float]:
    """Median of interleaved repetitions, per name."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(times):
        for name, (step, ctx) in steps.items():
            found[name].append(microseconds(step, ctx))
    return {name: statistics.median(values) for name, values in found.items()}


def compare(title: str, plugins: dict[str, Any], times: int) -> None:
    """Prints flat list, written out, frozen, pluggy."""
    bus = Bus(plugins)
    ctx = Context(bus)
    found = medians(
        {
            "flat list": (flat_lists(plugins), ctx),
            "written out": (written_out(plugins), ctx),
            "frozen": (frozen(), ctx),
            "pluggy": (through_pluggy(bus), ctx),
        },
        times,
    )
    base = found["flat list"]
    print(title)
    for name, value in found.items():
        print(f"  {name:12} {value:8.2f} us a step   {value / base:6.2f}x")


def compare_tasks(times: int) -> None:
    """Prints what a task's callers cost."""
    plain = Bus({f"p{i}": plugin_on(EVENTS) for i in range(5)})
    bound = Bus()
    tasks = ["a", "b", "c", "d"]
    for task in tasks:
        for i in range(5):
            bound.register(plugin_on(EVENTS[2:8]), f"{task}{i}", overrides={"tasks": task})
    bound.set_tasks(tasks)
    bound.freeze()
    one, other = Context(plain), Context(bound)
    other.emit = bound.scopes["a"]
    step = frozen(EVENTS[2:8])
    found = medians({"5 plugins": (step, one), "4 tasks x 5": (step, other)}, times)
    print("6 batch events")
    for name, value in found.items():
        print(f"  {name:12} {value:6.2f} us   {value / found['5 plugins']:6.2f}x")


def nobody(times: int) -> None:
    """Prints the cost of an event without listeners."""
    ctx = Context(Bus())
    found = medians({"12": (frozen(), ctx), "0": (frozen(()), ctx)}, times)
    print(f"an event nobody listens to: {(found['12'] - found['0']) / 12 * 1e3:.1f} ns")


def main(times: int) -> None:
    """Prints everything."""
    compare("5 plugins on every event", {f"p{i}": plugin_on(EVENTS) for i in range(5)}, times)
    two = {f"p{i}": plugin_on((EVENTS[i % 12], EVENTS[(i * 5 + 1) % 12])) for i in range(20)}
    compare("20 plugins on 2 of 12 events each", two, times)
    compare_tasks(times)
    nobody(times)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
