"""One EMA update against one ``torch._foreach_lerp_`` over the same tensors; the bar is 1.15.

Also a loop over the state dict, as other libraries have it. One thread, times taken in turns,
medians: ``python tests/benchmarks/bench_ema.py [rounds]``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn

from hatbus import Bus, Context
from hatbus_model import ExponentialMovingAverage

BAR = 1.15
SIZES = {"161 tensors, 25.6M": 25_600_000, "161 tensors, 100M": 100_000_000}


def many_tensors(total: int, count: int = 161) -> nn.Module:
    """A module with the sizes of a ResNet-50: few large tensors, many small ones."""
    large = count // 3
    sizes = [total // large] * large + [256] * (count - large)
    return nn.ParameterList([nn.Parameter(torch.randn(size)) for size in sizes])


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            began = perf_counter()
            call()
            times[name].append(perf_counter() - began)
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def state_dict_loop(average: dict[str, torch.Tensor], model: nn.Module) -> None:
    """What most libraries do at every update."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            average[name].copy_(average[name] * 0.99 + value * 0.01)


def main(rounds: int) -> None:
    """Prints one line per size."""
    torch.set_num_threads(1)
    for title, total in SIZES.items():
        model = many_tensors(total)
        ema = ExponentialMovingAverage(0.99, 0)
        ctx = Context(Bus([ema]), model=model)
        ctx.committed = True
        for begin in (ctx.emit.on_loop_begin, ctx.emit.on_epoch_begin):
            begin(ctx)
        live = [p.detach() for p in model.parameters()]
        plain = [p.clone() for p in live]
        average = {name: value.clone() for name, value in model.state_dict().items()}
        calls: dict[str, Callable[[], object]] = {
            "foreach": lambda one=plain, two=live: torch._foreach_lerp_(one, two, 0.01),  # type: ignore[misc]
            "ema": lambda ctx=ctx: ctx.emit.on_optimizer_step_end(ctx),  # type: ignore[misc]
            "loop": lambda one=average, two=model: state_dict_loop(one, two),  # type: ignore[misc]
        }
        found = interleaved(calls, rounds)
        base = found["foreach"]
        print(
            f"{title:<22} foreach_lerp_ {base * 1000:7.2f} ms   ema {found['ema'] / base:5.2f}x "
            f"(bar {BAR})   state-dict loop {found['loop'] / base:5.2f}x"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
