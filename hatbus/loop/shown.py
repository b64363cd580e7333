"""How a trainer and its context show themselves at a prompt and in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import UninitializedParameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus.loop.context import Context

_MOST: Final = 12
"""Metrics that are shown."""


class ShowsItself:
    """What a trainer and a context have of how they show themselves."""

    __slots__ = ()

    def __repr__(self) -> str:
        run: Any = getattr(self, "ctx", self)
        is_made = hasattr(run, "position")
        return as_text(type(self).__name__, run) if is_made else object.__repr__(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return as_html(type(self).__name__, getattr(self, "ctx", self))


def as_text(title: str, ctx: Any) -> str:
    """A line for each fact."""
    facts = [*facts_of(ctx)]
    width = max(len(name) for name, _ in facts)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts)])


def as_html(title: str, ctx: Any) -> str:
    """A table of the facts."""
    rows = (
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in facts_of(ctx)
    )
    return f"<table><caption>{escape(title)}</caption>{''.join(rows)}</table>"


def facts_of(ctx: Context) -> Iterator[tuple[str, str]]:
    """Name and text of what is so in a run just now; reads the metrics from their device."""
    model: Any = ctx.model  # a loop of somebody's own may have none
    if model is not None:
        yield "model", _model(model)
    if ctx.optimizer is not None:
        yield "optimizer", _optimizer(ctx.optimizer)
    yield "device", str(ctx.device)
    if ctx.steps_per_epoch is not None:
        tasks = [task for task in getattr(ctx.data, "tasks", ()) if task]
        of = f" of tasks {', '.join(tasks)}" if tasks else ""
        yield "data", f"{ctx.steps_per_epoch:,} steps an epoch{of}"
    plugins = [member.name for member in ctx.bus.members.values() if not member.core]
    yield "plugins", ", ".join(plugins) or "none"
    yield "done", _done(ctx)
    metrics = [f"{name} {value:.5g}" for name, value in _numbers(ctx)]
    if metrics:
        more = f", and {len(metrics) - _MOST} more" if len(metrics) > _MOST else ""
        yield "last", ", ".join(metrics[:_MOST]) + more


def _model(model: torch.nn.Module) -> str:
    count = trained = 0
    for parameter in model.parameters():
        size = 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()
        count, trained = count + size, trained + size * parameter.requires_grad
    some = f", {trained:,} of them trained" if trained != count else ""
    return f"{type(model).__name__}, {count:,} parameters{some}"


def _optimizer(optimizer: torch.optim.Optimizer) -> str:
    rates = dict.fromkeys(f"{float(g['lr']):.4g}" for g in optimizer.param_groups if "lr" in g)
    return type(optimizer).__name__ + (f", lr {', '.join(rates)}" if rates else "")


def _done(ctx: Context) -> str:
    position = ctx.position
    epochs = f"{position.epoch:,}" + (f" of {ctx.num_epochs:,}" if ctx.num_epochs else "")
    steps = f"{position.global_step:,}" + (f" of {ctx.total_steps:,}" if ctx.total_steps else "")
    return f"{epochs} epochs, {steps} steps"


def _numbers(ctx: Context) -> Iterator[tuple[str, float]]:
    for name, value in ctx.latest.items():
        found: Any = value
        if isinstance(value, torch.Tensor):
            found = value.item() if value.numel() == 1 else None
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            yield name, found
