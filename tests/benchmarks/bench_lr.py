"""What a learning-rate updater with 2 param groups costs per step; the bar is 2 us.

Times step begins through the frozen event, every one logged, beside the same event with an empty
plugin; the two are timed in turns, and the best of the rounds counts.
"""

from __future__ import annotations

import logging
import timeit
from time import perf_counter

import torch

from hatbus import Bus, Context, hookimpl
from hatbus_lr import (
    CosineAnnealingLrUpdater,
    CosLrUpdater,
    CyclicLrUpdater,
    NoamLrUpdater,
    OneCycleUpdater,
    PolyLrUpdater,
    StepDecayLrUpdater,
)

STEPS = 1_000
ROUNDS = 200
BAR = 2.0


class Nothing:
    """Listens and does nothing: the price of the event itself."""

    @hookimpl
    def on_step_begin(self, ctx: Context) -> None: ...


def seconds(ctx: Context) -> float:
    """Time of ``STEPS`` step begins."""
    emit = ctx.emit.on_step_begin
    began = perf_counter()
    for step in range(STEPS):
        ctx.global_step_id = step
        emit(ctx)
    return perf_counter() - began


def started(plugin: object) -> Context:
    """A context whose bus holds one plugin that knows the run's length."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.01}], lr=0.1
    )
    ctx = Context(Bus([plugin]), optimizer=optimizer, num_epochs=1, steps_per_epoch=STEPS)
    for event in (ctx.emit.on_loop_begin, ctx.emit.on_epoch_begin):
        if event is not None:
            event(ctx)
    return ctx


def main() -> None:
    """Prints microseconds per step, less those of the empty plugin."""
    logging.getLogger("hatbus").setLevel(logging.ERROR)  # OneCycle warns of two peaks
    updaters = [
        CosLrUpdater(warmup_len=STEPS // 10),
        CosineAnnealingLrUpdater(),
        CyclicLrUpdater(),
        NoamLrUpdater(),
        OneCycleUpdater(),
        PolyLrUpdater(max_update=STEPS, power=2.0),
        StepDecayLrUpdater(lr_decay_id=[1, 2]),
    ]
    contexts = [started(plugin) for plugin in (Nothing(), *updaters)]
    best = [
        min(times) for times in zip(*(map(seconds, contexts) for _ in range(ROUNDS)), strict=True)
    ]
    for updater, time in zip(updaters, best[1:], strict=True):
        cost = (time - best[0]) / STEPS * 1e6
        verdict = "ok" if cost <= BAR else f"above the bar of {BAR} us"
        print(f"{type(updater).__name__:26} {cost:5.2f} us a step with 2 groups: {verdict}")
    print(f"{'(the event alone)':26} {best[0] / STEPS * 1e6:5.2f} us")
    call = min(timeit.repeat("f(1, 2)", "def f(a, b): return a", number=STEPS, repeat=ROUNDS))
    print(f"{'(a bare Python call)':26} {call / STEPS * 1e6:5.2f} us, for scale")


if __name__ == "__main__":
    main()
