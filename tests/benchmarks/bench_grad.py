"""GradScale and GradClip against torch's own foreach calls over the same gradients.

Bars: two rules at most 1.15 times one ``torch._foreach_mul_`` over the matched gradients; a task
that no rule matches costs nothing one can measure; clipping is no slower than torch's.
One thread, times taken in turns, medians of the ratios:
``python tests/benchmarks/bench_grad.py [rounds]``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from torch import nn

from hatbus import Bus, Context
from hatbus.callbacks import GradClip, GradScale

SIZES = {"161 tensors, 25.6M": 25_600_000, "161 tensors, 100M": 100_000_000}


class Tasks:
    """The part of a run's data that the plugin asks for."""

    tasks = ("a", "b")


def many_tensors(total: int, count: int = 161) -> nn.Module:
    """Two modules that hold the sizes of a ResNet-50: few large tensors, many small ones."""
    large = count // 3
    sizes = [total // large] * large + [256] * (count - large)
    halves = (sizes[::2], sizes[1::2])
    parts = (nn.ParameterList([nn.Parameter(torch.randn(n)) for n in half]) for half in halves)
    return nn.ModuleDict(dict(zip(("one", "two"), parts, strict=True)))


def interleaved(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, taken in turns; the order changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 2):
        for name in sorted(calls, reverse=index % 2 == 1):
            times[name].append(calls[name]())
    return {name: found[2:] for name, found in times.items()}


def ratio(times: list[float], base: list[float]) -> float:
    """Median of the ratios within each round: a busy machine slows both sides of one round."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """The call, returning its seconds."""

    def seconds() -> float:
        began = perf_counter()
        call()
        return perf_counter() - began

    return seconds


def started(plugin: object, model: nn.Module, optimizer: torch.optim.Optimizer) -> Context:
    """A context whose bus holds one plugin."""
    bus = Bus([plugin])
    bus.set_tasks(Tasks.tasks)
    ctx = Context(bus, model=model, optimizer=optimizer, data=Tasks())
    if ctx.emit.on_loop_begin is not None:
        ctx.emit.on_loop_begin(ctx)
    return ctx


def backward(ctx: Context, task: str, gradients: list[torch.Tensor]) -> float:
    """Seconds that the plugin takes around one backward, the backward itself left out."""
    ctx.task, emit = task, ctx.bus.emitter(task)
    parameters = list(ctx.model.parameters())
    for parameter in parameters:
        parameter.grad = None
    began = perf_counter()
    emit.on_backward_begin(ctx)
    first = perf_counter() - began
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    began = perf_counter()
    emit.on_backward_end(ctx)
    return first + perf_counter() - began


def main(rounds: int) -> None:
    """Prints two lines per size."""
    torch.set_num_threads(1)
    for title, total in SIZES.items():
        model = many_tensors(total)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        gradients = [torch.randn_like(p) for p in model.parameters()]
        ctx = started(GradScale([("one", 0.999, "a"), ("two", 1.001, "a")]), model, optimizer)
        found = interleaved(
            {
                "mul": timed(partial(torch._foreach_mul_, gradients, 0.999)),
                "two": partial(backward, ctx, "a", gradients),
                "none": partial(backward, ctx, "b", gradients),
            },
            rounds,
        )
        base, none = statistics.median(found["mul"]), statistics.median(found["none"])
        print(
            f"{title:<22} foreach_mul_ {base * 1000:7.2f} ms   "
            f"two rules {ratio(found['two'], found['mul']):5.2f}x (bar 1.15)   "
            f"no rule {none * 1e6:5.1f} us"
        )
        clip = started(GradClip(1e9), model, optimizer)
        parameters = list(model.parameters())
        found = interleaved(
            {
                "torch": timed(partial(nn.utils.clip_grad_norm_, parameters, 1e9, foreach=True)),
                "plugin": timed(partial(clip.emit.clip_gradients, clip)),
            },
            rounds,
        )
        print(
            f"{'':<22} clip_grad_norm_ {statistics.median(found['torch']) * 1000:7.2f} ms   "
            f"plugin {ratio(found['plugin'], found['torch']):5.2f}x (bar 1.0)"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
