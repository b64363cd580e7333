"""What plugins and trainer cost on a GPU, each beside torch's own call for the same work.

The parameters are those of a ResNet-50 (161 tensors, 25.6M). Every number is a ratio within one
run: calls are taken in turns, some in a row per round with one wait for the device at the end, so
that the host's part hides behind the device's where it does in training; medians over the rounds.
Without a GPU there is nothing to measure: ``python tests/benchmarks/bench_gpu.py [cpu] [rounds]``.

Bars: EMA at most 1.15 times one ``_foreach_lerp_``; two rules of GradScale at most 1.15 times one
``_foreach_mul_``; clipping no slower than torch's foreach clip.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from hatbus import Bus, Context, Trainer, hookimpl
from hatbus.callbacks import ExponentialMovingAverage, GradClip, GradScale

IN_A_ROW = 10
STEPS = 300
Call = Callable[[], object]


def resnet50_shapes() -> Iterator[tuple[int, ...]]:
    """The shapes of a ResNet-50's parameters, in order."""
    yield from ((64, 3, 7, 7), (64,), (64,))
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [(4 * width, before, 1, 1)] if block == 0 else []
            for shape in convolutions:
                yield from (shape, (shape[0],), (shape[0],))
            before = 4 * width
    yield from ((1000, 2048), (1000,))


def resnet50(device: str) -> nn.Module:
    """The parameters alone, in two halves."""
    shapes = list(resnet50_shapes())
    parts = {
        name: nn.ParameterList([nn.Parameter(torch.randn(s, device=device)) for s in half])
        for name, half in (("one", shapes[::2]), ("two", shapes[1::2]))
    }
    return nn.ModuleDict(parts)


def wait(device: str) -> None:
    """Until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def measured(calls: dict[str, Call], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds per call, taken in turns; the order changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 2):
        for name in sorted(calls, reverse=index % 2 == 1):
            call = calls[name]
            wait(device)
            began = time.perf_counter()
            for _ in range(IN_A_ROW):
                call()
            wait(device)
            times[name].append((time.perf_counter() - began) / IN_A_ROW)
    return {name: found[2:] for name, found in times.items()}


def report(title: str, found: dict[str, list[float]], base: str, bar: float | None = None) -> None:
    """One line per call: microseconds, and its ratio to the base."""
    for name, times in found.items():
        ratio = statistics.median(a / b for a, b in zip(times, found[base], strict=True))
        note = f"   bar {bar}" if bar is not None and name != base else ""
        micro = statistics.median(times) * 1e6
        print(f"{title:10} {name:44}{micro:11.1f} us{ratio:8.2f}x{note}")


def started(plugin: object, model: nn.Module, **more: Any) -> Context:
    """A context whose bus holds one plugin."""
    bus = Bus([plugin])
    bus.set_tasks(more.pop("tasks", ()))
    ctx = Context(bus, model=model, **more)
    ctx.committed = True
    for event in (ctx.emit.on_loop_begin, ctx.emit.on_epoch_begin):
        if event is not None:
            event(ctx)
    return ctx


def average(device: str, rounds: int) -> None:
    """One update of the average."""
    model = resnet50(device)
    live = [p.detach() for p in model.parameters()]
    plain = [p.clone() for p in live]
    calls: dict[str, Call] = {
        "torch._foreach_lerp_": partial(torch._foreach_lerp_, plain, live, 0.01)
    }
    for name, options in (("ema", {}), ("ema on the host (offload)", {"offload": True})):
        ctx = started(ExponentialMovingAverage(0.99, 0, **options), model)
        calls[name] = partial(ctx.emit.on_optimizer_step_end, ctx)
    report("EMA", measured(calls, device, rounds), "torch._foreach_lerp_", 1.15)


class Tasks:
    """The part of a run's data that GradScale asks for."""

    tasks = ("a", "b")


def around_backward(ctx: Context, task: str, gradients: list[torch.Tensor]) -> None:
    """What the plugin does around a backward, the backward itself left out."""
    ctx.task, emit = task, ctx.bus.emitter(task)
    emit.on_backward_begin(ctx)
    for parameter, gradient in zip(ctx.model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    emit.on_backward_end(ctx)
    for parameter in ctx.model.parameters():
        parameter.grad = None


def put_and_scale(model: nn.Module, gradients: list[torch.Tensor]) -> None:
    """The same with torch's own call in the plugin's place."""
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    torch._foreach_mul_(gradients, 0.999)
    for parameter in model.parameters():
        parameter.grad = None


def scale(device: str, rounds: int) -> None:
    """Two rules over all gradients."""
    model = resnet50(device)
    gradients = [torch.randn_like(p) for p in model.parameters()]
    plugin = GradScale([("one", 0.999, "a"), ("two", 1.001, "a")])
    ctx = started(plugin, model, data=Tasks(), tasks=Tasks.tasks)
    calls: dict[str, Call] = {
        "torch._foreach_mul_": partial(put_and_scale, model, gradients),
        "two rules": partial(around_backward, ctx, "a", gradients),
        "no rule for this task": partial(around_backward, ctx, "b", gradients),
    }
    report("GradScale", measured(calls, device, rounds), "torch._foreach_mul_", 1.15)


def clip(device: str, rounds: int) -> None:
    """One clip of all gradients."""
    model = resnet50(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ctx = started(GradClip(1e9), model, optimizer=optimizer)
    torchs = partial(nn.utils.clip_grad_norm_, list(model.parameters()), 1e9, foreach=True)
    calls = {"clip_grad_norm_": torchs, "grad_clip": partial(ctx.emit.clip_gradients, ctx)}
    report("GradClip", measured(calls, device, rounds), "clip_grad_norm_", 1.0)


class Nothing:
    """Hears six events of every step and does nothing."""

    @hookimpl
    def on_step_begin(self) -> None: ...

    @hookimpl
    def on_forward_end(self) -> None: ...

    @hookimpl
    def on_backward_end(self) -> None: ...

    @hookimpl
    def on_batch_end(self) -> None: ...

    @hookimpl
    def on_optimizer_step_end(self) -> None: ...

    @hookimpl
    def on_step_end(self) -> None: ...


def loop(device: str, rounds: int) -> None:
    """Whole steps: the trainer beside the loop that everybody writes."""
    data = [(torch.randn(4, 8), torch.randn(4, 8))] * STEPS
    loss_of = nn.functional.mse_loss

    def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(8, 8).to(device)
        return model, torch.optim.SGD(model.parameters(), lr=0.01)

    def bare() -> Call:
        model, optimizer = parts()

        def run() -> None:
            for inputs, target in data:
                moved = inputs.to(device, non_blocking=True), target.to(device, non_blocking=True)
                optimizer.zero_grad()
                loss_of(model(moved[0]), moved[1]).backward()
                optimizer.step()

        return run

    def hatbus(count: int, **options: Any) -> Call:
        plugins = {f"p{i}": Nothing() for i in range(count)}
        trainer = Trainer(*parts(), data, loss_of, plugins, device=device, **options)
        return lambda: trainer.fit(num_steps=trainer.ctx.position.global_step + STEPS)

    calls = {
        "bare torch loop": bare(),
        "hatbus, nan='ignore'": hatbus(0, nan="ignore"),
        "hatbus": hatbus(0),
        "hatbus, 5 plugins on 6 events": hatbus(5),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            wait(device)
            began = time.perf_counter()
            call()
            wait(device)
            if index:
                times[name].append((time.perf_counter() - began) / STEPS)
    report("a step", times, "bare torch loop")
    base = times["bare torch loop"]
    for name in list(calls)[1:]:
        more = statistics.median(a - b for a, b in zip(times[name], base, strict=True))
        print(f"{'':10} {name:44}{more * 1e6:+11.1f} us a step")


def main(device: str, rounds: int) -> None:
    """Prints every line."""
    if device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU: nothing to measure")
        return
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if device == "cuda" else "the host"
    print(f"{name}, torch {torch.__version__}, python {sys.version.split()[0]}")
    for part in (average, scale, clip):
        part(device, rounds)
    loop(device, max(rounds // 2, 3))


if __name__ == "__main__":
    words = sys.argv[1:]
    device = "cpu" if "cpu" in words else "cuda"
    main(device, int(next((w for w in words if w.isdigit()), "20")))
