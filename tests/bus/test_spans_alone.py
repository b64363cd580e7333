"""On a bus without the Trainer a span can always be called, and says what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hatbus import BatchProcessor, Bus, Context, hookimpl
from hatbus.bus import Moments
from hatbus.bus.blame import blame_of
from hatbus.errors import HookError
from hatbus.events import EVENTS
from hatbus.events.training import SPAN
from hatbus.loop import Loop

SPANS = [name for name, event in EVENTS.items() if event.kind == SPAN]
OPTIONAL = {"validate", "write_outputs", "save_checkpoint", "load_checkpoint", "export_model"}


class Doubles:
    """Cannot go on without outputs."""

    @hookimpl(wrapper=True)
    def forward(self) -> Any:
        return 2 * (yield)


class Wraps:
    @hookimpl(wrapper=True)
    def save_checkpoint(self) -> Any:
        return not (yield)


def context(*plugins: object, **parts: object) -> Context:
    bus = Bus([Doubles(), Wraps(), *plugins])
    for name, part in parts.items():
        bus.register(part, f"core.{name}", core=True)
    model = torch.nn.Linear(1, 1)
    ctx = Context(bus, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    ctx.batches = [(None, (torch.ones(4, 1), torch.ones(4, 1)), 1.0)]
    ctx.batch = ctx.batches[0][1]
    return ctx


def called(ctx: Context, span: str) -> Any:
    reasons = ["why" for name in EVENTS[span].arguments if name == "reason"]
    return getattr(ctx.emit, span)(ctx, *reasons)


@pytest.mark.parametrize("with_moments", [False, True])
@pytest.mark.parametrize("span", SPANS)
def test_a_span_that_nobody_does_says_who_could(span: str, with_moments: bool) -> None:
    ctx = context(**({"moments": Moments()} if with_moments else {}))
    if span in OPTIONAL:
        assert called(ctx, span) is (span == "save_checkpoint")
        return
    part = "Loop" if span in ("run_loop", "run_epoch", "run_step") else "BatchProcessor"
    with pytest.raises(HookError, match=f"^nobody on this bus does '{span}'; register {part}") as e:
        called(ctx, span)
    found = blame_of(e.value)
    assert found is None or found.plugin is None  # no wrapper is guilty of it


def test_a_missing_part_further_in_is_the_one_that_is_named() -> None:
    with pytest.raises(
        HookError, match=r"^nobody on this bus does 'run_batch'; register BatchProc"
    ):
        called(context(moments=Moments(), loop=Loop()), "run_step")


def test_an_epoch_without_the_trainers_data_is_said_so() -> None:
    processor = BatchProcessor(torch.nn.functional.mse_loss)
    ctx = context(moments=Moments(), loop=Loop(), processor=processor)
    assert called(ctx, "run_step") is True
    with pytest.raises(
        HookError, match=r"run_epoch takes batches from ctx.data, .*ctx.emit.run_st"
    ):
        called(ctx, "run_epoch")
