"""One EMA update against one ``torch._foreach_lerp_`` over the same tensors; the bar is 1.15.

Also a loop over the state dict, as other libraries have it. One thread, times taken in turns,
medians of the rounds' ratios: ``python tests/benchmarks/bench_ema.py [rounds]``.
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
from hatbus.callbacks import ExponentialMovingAverage

BAR = 1.15
SIZES = {"161 tensors, 25.6M": 25_600_000, "161 tensors, 100M": 100_000_000}


def many_tensors(total: int, count: int = 161) -> nn.Module:
    """A module with the sizes of a ResNet-50: few large tensors, many small ones."""
    large = count // 3
    sizes = [total // large] * large + [256] * (count - large)
    return nn.ParameterList([nn.Parameter(torch.randn(size)) for size in sizes])


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
        calls = {
            "foreach": timed(partial(torch._foreach_lerp_, plain, live, 0.01)),
            "ema": timed(partial(ctx.emit.on_optimizer_step_end, ctx)),
            "loop": timed(partial(state_dict_loop, average, model)),
        }
        found = interleaved(calls, rounds)
        base = found["foreach"]
        print(
            f"{title:<22} foreach_lerp_ {statistics.median(base) * 1000:7.2f} ms   "
            f"ema {ratio(found['ema'], base):5.2f}x (bar {BAR})   "
            f"state-dict loop {ratio(found['loop'], base):5.2f}x"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
