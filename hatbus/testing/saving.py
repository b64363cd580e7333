"""A checkpoint in memory: what the contract resumes from, saved and restored as on disk.

The order of things is that of the plugin ``checkpoint``: saved at ``on_step_end`` in stage
``checkpoint``; on resume the plugins' states come back first, then model and optimizer (which the
plugins may have changed), then counters, data position and random state.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import torch

from hatbus import hookimpl, plugin, rng
from hatbus.bus import state_version
from hatbus.testing.trees import copied

if TYPE_CHECKING:
    from hatbus import Context

Saved = dict[str, Any]


@plugin(stage="checkpoint")
class Save:
    """Keeps the state of the run as it is after a step.

    Attributes:
        saved: it, once that step is over.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self.saved: Saved = {}

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Saves."""
        if ctx.position.global_step == self.after and ctx.exception is None:
            self.saved = state_of(ctx)


@plugin(stage="checkpoint")
class Resume:
    """Gives a new run a saved state, inside ``on_loop_begin``.

    Attributes:
        loaded: the plugins' states as they are when everybody is prepared.
    """

    def __init__(self, saved: Saved) -> None:
        self.saved = saved
        self.loaded: dict[str, Any] = {}
        self._random: rng.RandomState | None = None

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Restores everything but the random state."""
        self._random = restore(ctx, self.saved)

    @hookimpl(wrapper=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Restores the random state when everybody is prepared."""
        self.loaded = copied_states(ctx)
        if self._random is not None:
            rng.restore(self._random)
        return (yield)


def state_of(ctx: Context) -> Saved:
    """The whole state of a run, sharing nothing with it."""
    position = ctx.position
    return {
        "plugins": copied_states(ctx),
        "versions": {name: state_version(m.plugin) for name, m in ctx.bus.members.items()},
        "model": copied(dict(ctx.model.state_dict()), "model"),
        "optimizer": optimizer_state(ctx),
        "position": (position.epoch, position.step, position.global_step),
        "last": (ctx.epoch_id, ctx.step_id, ctx.global_step_id),
        "updates": ctx.updates,
        "latest": dict(ctx.latest),
        "data": copied(ctx.data.state_dict(ctx), "data"),
        "rng": rng.capture(),
    }


def copied_states(ctx: Context) -> dict[str, Any]:
    """The states of all plugins."""
    return {n: copied(s, f"state of {n!r}: state") for n, s in ctx.bus.state_dict().items()}


def restore(ctx: Context, saved: Saved) -> rng.RandomState | None:
    """Gives a run its state; the random state is handed back where the loop has to begin first."""
    ctx.bus.load_state_dict(copied(saved["plugins"], "state"), saved["versions"])
    ctx.model.load_state_dict(saved["model"])
    load_optimizer_state(ctx, saved["optimizer"])
    position = ctx.position
    position.epoch, position.step, position.global_step = saved["position"]
    ctx.epoch_id, ctx.step_id, ctx.global_step_id = saved["last"]
    ctx.updates = saved["updates"]
    ctx.latest.update(saved["latest"])
    random: rng.RandomState = saved["rng"]
    inside = position.step > 0
    ctx.data.load_state_dict(saved["data"], lambda: rng.restore(random) if inside else None)
    return None if inside else random


def optimizer_state(ctx: Context) -> dict[str, Any]:
    """The optimizer's state by parameter name: plugins may put parameters in and out."""
    optimizer: Any = ctx.optimizer
    names = {parameter: name for name, parameter in ctx.model.named_parameters()}
    return {
        "groups": fields_of(optimizer),
        "state": {
            names[parameter]: copied(dict(state), "optimizer")
            for parameter, state in optimizer.state.items()
            if parameter in names
        },
    }


def load_optimizer_state(ctx: Context, saved: dict[str, Any]) -> None:
    """The way back."""
    optimizer: Any = ctx.optimizer
    for group, fields in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(fields)
    for name, parameter in ctx.model.named_parameters():
        if name in saved["state"]:
            optimizer.state[parameter] = copied(saved["state"][name], "optimizer")


def fields_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The fields of every parameter group, without the parameters."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
