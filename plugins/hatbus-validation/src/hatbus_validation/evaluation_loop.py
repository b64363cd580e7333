"""The loop of a validation: one pass over the data, a step per batch, and no update."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus import hookimpl
from hatbus.batches import direct_loss, named_losses, plain_processor
from hatbus.bus import Moments
from hatbus.log import log
from hatbus.loop import kept_batches, losses_of_task, stop_wanted
from hatbus.parallel import stop_agreed

if TYPE_CHECKING:
    from hatbus import BatchProcessor, Context
    from hatbus_validation.inner_run import InnerContext

_fail: Final[Any] = Moments.run_batch.halves.fail  # type: ignore[attr-defined]
"""What ``run_batch`` does when there is an error in it."""
PAIRS: Final = frozenset({tuple, list})


class EvaluationLoop:
    """One epoch over the validation data; a step is a batch, and makes no update.

    A signal that asks the run to end cuts it short (``ctx.is_cut``), on all processes alike.

    Where nobody stands between the parts of a batch, they are run right here. That saves calls, and
    more than their own time: a model drives whatever else runs out of the processor's caches.

    Args:
        log_interval: steps between two lines in the log; None: none. A progress bar, if the run
            has one, is told of every step.
        loader: name of the loader, where there are several.
    """

    def __init__(self, log_interval: int | None, loader: str = "") -> None:
        self._interval = log_interval
        self._loader = f" of {loader!r}" if loader else ""
        self._plain: tuple[int, BatchProcessor | None] = (-1, None)

    @hookimpl(trylast=True)
    def run_loop(self, ctx: Context) -> int:
        """Runs the one epoch."""
        ctx.emit.run_epoch(ctx)
        return ctx.position.global_step

    @hookimpl(trylast=True)
    def run_epoch(self, ctx: InnerContext) -> int:
        """Runs a step per batch."""
        position, emit, step = ctx.position, ctx.emit, 0
        is_alone, run_batch, ended = ctx.world_size == 1, emit.run_batch, emit.on_batch_end
        batches, tensor = ctx.data.batches(), torch.Tensor
        loss = self._loss(ctx) if batches is not None else None
        said, say_at = self._told_by(ctx), self._next(ctx, 0)
        for given in ctx.data.steps(ctx) if batches is None else batches:
            if stop_wanted() if is_alone else stop_agreed(ctx, step):
                ctx.is_cut = True
                break
            ctx.batches = given if batches is None else [(None, given, 1.0)]
            ctx.step_id = ctx.global_step_id = step
            step += 1
            position.step = position.global_step = step
            is_pair = loss is not None and type(given) in PAIRS and len(given) == 2
            if is_pair and type(given[0]) is tensor and emit.run_batch is run_batch:
                ctx.batch = given
                try:
                    ctx.model_outs = outs = ctx.wrapped_model(given[0])
                    found = loss(outs, given[1])  # type: ignore[misc]
                    is_one = type(found) is tensor and found.ndim == 0
                    ctx.losses = {"loss": found} if is_one else named_losses(found, None)
                except BaseException as error:
                    _fail(ctx, error)
                    raise
                if ended is not None:
                    ended(ctx)
            else:
                emit.run_step(ctx)
                loss = self._loss(ctx) if step == 1 and batches is not None else loss
            if say_at == step:
                said(step)
                say_at = self._next(ctx, step)
        if step == 0 and not ctx.is_cut:
            ctx.data.refuse_empty()
        position.epoch, position.step = position.epoch + 1, 0
        return position.global_step

    @hookimpl(trylast=True)
    def run_step(self, ctx: Context) -> bool:
        """Runs the step's batch; nothing is ever committed."""
        if ctx.bus.asks_batches:
            ctx.batches = kept_batches(ctx)
        losses: dict[str, Any] = {}
        for ctx.task, ctx.batch, _ in ctx.batches:  # noqa: B020 - the context holds them
            losses = ctx.bus.scopes[ctx.task].run_batch(ctx)
            if ctx.task is not None:
                losses = losses_of_task(losses, ctx.task)
        ctx.task, ctx.losses = None, losses
        return False

    def _loss(self, ctx: Context) -> Callable[[Any, Any], Any] | None:
        """The loss function, where ``run_step`` does what this loop does itself; else None."""
        bus = ctx.bus
        if self._plain[0] != bus.freezes:
            is_own = ctx.emit.run_step == self.run_step
            is_plain = is_own and not bus.asks_batches and len(bus.scopes) == 1
            self._plain = bus.freezes, plain_processor(bus) if is_plain else None
        processor = self._plain[1]
        return None if processor is None else direct_loss(processor, ctx)

    def _next(self, ctx: Context, step: int) -> int:
        """The next step that is told of; 0: none."""
        if ctx.rank != 0:
            return 0
        if "progress" in ctx.storage:
            return step + 1
        return step + self._interval if self._interval else 0

    def _told_by(self, ctx: Context) -> Callable[[int], None]:
        """Says how far the validation is: in the log, and to a progress bar if the run has one."""
        show: Callable[[str, int, int | None], None] | None = ctx.storage.get("progress")
        began, every = time.monotonic(), self._interval
        of_all = "" if ctx.total_steps is None else f" of {ctx.total_steps}"

        def say(step: int) -> None:
            if show is not None:
                show(f"validation{self._loader}", step, ctx.total_steps)
            if every is not None and step % every == 0:
                each = (time.monotonic() - began) / step * 1000
                log.info("validation%s: step %d%s, %.3g ms each", self._loader, step, of_all, each)

        return say
