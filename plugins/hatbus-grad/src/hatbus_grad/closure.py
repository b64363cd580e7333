"""``Closure``: updates by an optimizer that evaluates the loss anew, such as LBFGS and SAM."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import distributed

from hatbus import hookimpl, plugin
from hatbus.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus import Context
    from hatbus.bus import Emitter

_OF_BATCH: Final = ("task", "batch", "weight", "model_outs", "losses", "loss", "emit", "grad_norm")
"""What the context holds of a batch, and is as before when an evaluation is over."""


@plugin(stage="train")
class Closure:
    """Makes the update by ``optimizer.step(closure)``; ``closure()`` gives the step's loss.

    For LBFGS, SAM and others that look at the loss at several points in one step. Each evaluation
    clears the gradients and runs forward, loss and backward of the step's batches again, with all
    that plugins do in these spans, and clips. The step is counted once: batches, metrics and
    published values are those of the evaluation that the loop made before. What a forward pass
    changes, such as statistics of batch norms and random numbers, every evaluation changes.

    Over several processes the gradients are shared as in a step, and the loss is their mean.

    Raises:
        JobError: at loop begin: precision fp16, or a batch processor of another kind.
    """

    def __init__(self) -> None:
        self._processor: Any = None

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Refuses what cannot be evaluated anew."""
        if ctx.scaler is not None:
            raise JobError(
                "closure: torch's loss scaler of fp16 takes no closure; accepted: precision 'bf16' "
                "or 'fp32'"
            )
        member = ctx.bus.members.get("core.batch_processor")
        self._processor = None if member is None else member.plugin
        if not callable(getattr(self._processor, "run_batch", None)):
            raise JobError("closure: the run has no batch processor with run_batch to call again")

    @hookimpl
    def optimizer_step(self, ctx: Context) -> bool:
        """Makes the update."""
        optimizer: Any = ctx.optimizer

        @torch.enable_grad()
        def closure() -> Tensor:
            """The loss at the present weights; their gradients are there then."""
            optimizer.zero_grad()
            return self._evaluated(ctx)

        optimizer.step(closure)
        return True

    def _evaluated(self, ctx: Context) -> Tensor:
        """Runs the step's batches once more; the weighted sum of their losses, detached."""
        losses = []
        with counted_once(ctx):
            for ctx.task, ctx.batch, ctx.weight in ctx.batches:  # noqa: B020 - and each of them
                ctx.emit = unheard(ctx.bus.scopes[ctx.task])
                ctx.model_outs, ctx.losses = None, {}
                self._processor.run_batch(ctx)
                losses.append(ctx.loss.detach())  # type: ignore[union-attr]  # run_batch has set it
            ctx.task, ctx.grad_norm = None, None
            ctx.emit.clip_gradients(ctx)
        total = torch.stack(losses).sum()
        if ctx.world_size > 1:
            distributed.all_reduce(total)
            total /= ctx.world_size
        return total


@contextmanager
def counted_once(ctx: Context) -> Iterator[None]:
    """What the context holds of a batch, and what was published, is afterwards as it was."""
    kept = {name: getattr(ctx, name) for name in _OF_BATCH}
    latest = dict(ctx.latest)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(ctx, name, value)
        ctx.latest.clear()
        ctx.latest.update(latest)


def unheard(emitter: Emitter) -> Emitter:
    """The same events, but nobody hears what is published."""
    found = copy.copy(emitter)
    found.on_log = None  # type: ignore[attr-defined]  # its slots are the events
    return found
