"""The calls of a model in a step of a run: a batch of each task, run forward beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import distributed

from hatbus_model.calls import reasons_by_run
from hatbus_model.traced_calls import reasons_by_trace

if TYPE_CHECKING:
    from hatbus.loop import Context
    from hatbus_model.folding import Fold


def reasons_in_step(ctx: Context, folds: Sequence[Fold], *, inplace: bool) -> dict[str, str]:
    """Why pairs may not be folded, by what the model does with the batches of the present step.

    Of several processes each looks at its own batches; a reason of one is a reason for all.

    Args:
        ctx: of the run, after the step's batches were fetched.
        folds: the pairs.
        inplace: whether the convolutions' modules stay.
    """
    if ctx.batches:
        found = reasons_by_run(ctx.model, folds, partial(_run, ctx), inplace=inplace)
    else:
        found = reasons_by_trace(ctx.model, folds, inplace=inplace)
    if ctx.world_size == 1:
        return found
    every: list[dict[str, str]] = [{}] * ctx.world_size
    distributed.all_gather_object(every, found)
    return {name: reason for one in reversed(every) for name, reason in one.items()}


def _run(ctx: Context) -> list[Any]:
    """Runs the first batch of each task forward as the run itself does it; nobody is told."""
    before = ctx.task, ctx.batch, ctx.model_outs, ctx.wrapped_model, ctx.emit
    ctx.wrapped_model = ctx.model
    try:
        firsts = {task: batch for task, batch, _ in reversed(ctx.batches)}
        outs = []
        for ctx.task, ctx.batch in firsts.items():
            ctx.emit = _Quiet(ctx.bus.emitter(ctx.task))  # type: ignore[assignment]  # stands for one
            outs.append(ctx.emit.forward(ctx))
        return outs
    finally:
        ctx.task, ctx.batch, ctx.model_outs, ctx.wrapped_model, ctx.emit = before


class _Quiet:
    """An emitter without the moments of a forward pass: to plugins this one does not happen."""

    on_forward_begin = on_forward_end = None

    def __init__(self, emitter: Any) -> None:
        self._emitter = emitter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._emitter, name)
