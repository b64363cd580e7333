"""A run that is cut and continued in the same process, without files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hatbus import Trainer, hookimpl, plugin

torch.set_num_threads(1)


@plugin(stage="checkpoint")
class Cut:
    """Keeps everything that a checkpoint holds, after step ``at``; or starts from it."""

    def __init__(self, at: int = -1, saved: dict[str, Any] | None = None) -> None:
        self.at, self.saved = at, saved

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        if self.saved is not None and self.at < 0:
            saved = copy.deepcopy(self.saved)
            ctx.bus.load_state_dict(saved["plugins"])
            ctx.model.load_state_dict(saved["model"])
            ctx.optimizer.load_state_dict(saved["optimizer"])
            for name, value in saved["position"].items():
                setattr(ctx.position, name, value)
            ctx.updates = saved["updates"]

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        if ctx.global_step_id == self.at:
            position = {n: getattr(ctx.position, n) for n in ("epoch", "step", "global_step")}
            self.saved = copy.deepcopy(
                {
                    "plugins": ctx.bus.state_dict(),
                    "model": ctx.model.state_dict(),
                    "optimizer": ctx.optimizer.state_dict(),
                    "position": position,
                    "updates": ctx.updates,
                }
            )


Build = Callable[[list[object]], Trainer]


def same(one: Any, other: Any, where: str = "") -> None:
    """Fails unless two nested states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}/{index}")
    else:
        assert one == other, where


@pytest.fixture
def continues_exactly() -> Callable[[Build, int, int], tuple[Trainer, Trainer]]:
    """``(build, steps, cut at)``: a run cut after that step ends with the bits of a whole run."""

    def check(build: Build, steps: int, at: int) -> tuple[Trainer, Trainer]:
        whole = build([])
        whole.fit(num_steps=steps)
        cut = Cut(at)
        build([cut]).fit(num_steps=at + 1)
        again = build([Cut(saved=cut.saved)])
        again.fit(num_steps=steps)
        for found in (lambda t: t.ctx.model.state_dict(), lambda t: t.ctx.optimizer.state_dict()):
            same(found(whole), found(again))
        modes = [[(n, m.training) for n, m in t.ctx.model.named_modules()] for t in (whole, again)]
        assert modes[0] == modes[1]
        grads = [
            [(n, p.requires_grad) for n, p in t.ctx.model.named_parameters()]
            for t in (whole, again)
        ]
        assert grads[0] == grads[1]
        states = [t.bus.state_dict() for t in (whole, again)]
        for name in states[0]:
            same(states[0][name], states[1][name], name)
        return whole, again

    return check
