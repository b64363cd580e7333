"""Frozen dispatch: what is passed from one implementation to the next, and what stays behind."""

from __future__ import annotations

import gc
import linecache
from collections.abc import Generator
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer

from hatbus import hookimpl
from hatbus.bus.blame import FILE_PREFIX
from hatbus.errors import HookError
from hatbus.loop.context import Context


def test_a_keyword_only_argument_with_a_default_is_given() -> None:
    class Wants:
        @hookimpl
        def on_step_end(self, *, global_step_id: int = -1) -> None:
            self.step = global_step_id

    wants = Wants()
    tiny_trainer([wants]).fit(num_steps=2)
    assert wants.step == 1


def test_nothing_of_a_trainer_that_is_gone_stays_behind() -> None:
    def frozen() -> int:
        gc.collect()
        return sum(name.startswith(FILE_PREFIX) for name in linecache.cache)

    before = frozen()
    trainer = tiny_trainer([hearing(["on_step_end"], lambda *_: None)])
    trainer.fit(num_steps=1)
    trainer.fit(num_steps=2)
    assert frozen() > before
    del trainer
    assert frozen() == before


class Scales:
    """Puts another batch, or other outputs, in the place of what it is given."""

    def __init__(self, event: str, factor: float) -> None:
        self.event, self.factor = event, factor

    @hookimpl
    def on_batch_begin(self, ctx: Context, batch: Any) -> None:
        self._scale(ctx, batch, "on_batch_begin")

    @hookimpl
    def on_forward_begin(self, ctx: Context, batch: Any) -> None:
        self._scale(ctx, batch, "on_forward_begin")

    @hookimpl
    def on_forward_end(self, ctx: Context, model_outs: Any) -> None:
        if self.event == "on_forward_end":
            ctx.model_outs = model_outs * self.factor

    def _scale(self, ctx: Context, batch: Any, event: str) -> None:
        if self.event == event:
            ctx.batch = (batch[0] * self.factor, batch[1])


@pytest.mark.parametrize("event", ["on_batch_begin", "on_forward_begin", "on_forward_end"])
def test_what_a_plugin_changes_is_what_the_next_one_is_given(event: str) -> None:
    outs: list[torch.Tensor] = []
    hears = hearing(["on_backward_begin"], lambda _, v: outs.append(v["model_outs"].detach()))
    model = torch.nn.Linear(3, 1, bias=False)
    start = model.weight.detach().clone()
    plugins = {"two": Scales(event, 2.0), "five": Scales(event, 5.0), "hears": hears}
    tiny_trainer(plugins, model=model).fit(num_steps=1)
    torch.testing.assert_close(outs[0], 10 * batches(3)[0][0] @ start.T)


def test_a_wrapper_around_one_that_yields_twice_is_ended_too() -> None:
    heard: list[str] = []

    class Around:
        @hookimpl(wrapper=True)
        def forward(self) -> Generator[None, Any, Any]:
            try:
                return (yield)
            finally:
                heard.append("ended")

    class Twice:
        @hookimpl(wrapper=True)
        def forward(self) -> Generator[None, Any, Any]:
            result = yield
            yield
            return result

    with pytest.raises(HookError, match="'twice': forward is a wrapper and yielded twice"):
        tiny_trainer({"around": Around(), "twice": Twice()}).fit(num_steps=1)
    assert heard == ["ended"]
