"""The events of a step in a straight line, where nothing but moments surrounds its spans."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from hatbus_hosts.events import Events, is_decided
from hatbus_hosts.work import more_losses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from hatbus import Bus, Context
    from hatbus.loop import OpenSpans

    Opened = dict[str, Sequence[Any]]


class StraightEvents(Events):
    """Opens and leaves the spans of a step without a call, as long as each comes in its turn.

    Between two steps of a training every call, and every line of Python, finds the processor's
    caches cold and costs four times what it does in a loop of its own. So a method here asks one
    question, whether the bus is still as it was looked at, or whether the innermost span is the one
    to end and was opened here. Whatever else there may be is for the method of ``Events``. For the
    same reason a host has at most 30 attributes: what an object has beyond that is slow to find.
    """

    bus: Bus

    def __init__(self) -> None:
        super().__init__()
        self._steps_at = self._update_at = -1
        self._step: Sequence[Any] | None = None
        self._batch: Sequence[Any] | None = None
        self._forward: Sequence[Any] | None = None
        self._update: Sequence[Any] | None = None

    def begin_step(self) -> None:
        """A step begins; once, however often it is said."""
        ctx, spans, opened = self._run or self._unprepared()
        if self._steps_at != self.bus.freezes or "run_epoch" not in opened:
            super().begin_step()
        elif "run_step" not in opened:
            self._open_step(ctx, spans, opened)

    def begin_batch(self, batch: Any, weight: float = 1.0) -> None:
        """A batch begins; it opens its step.

        Args:
            batch: what the loader gave.
            weight: its share in the step's gradient.
        """
        ctx, spans, opened = self._run or self._unprepared()
        if (
            self._steps_at != self.bus.freezes
            or "run_epoch" not in opened
            or "run_batch" in opened
            or ("run_step" not in opened and not self._open_step(ctx, spans, opened))
        ):
            super().begin_batch(batch, weight)
            return
        ctx.batch, ctx.model_outs, ctx.losses, ctx.weight = batch, None, {}, weight
        ctx.batches.append((None, batch, weight))
        opened["run_batch"] = self._batch  # type: ignore[assignment]  # none: not straight
        moment = ctx.emit.on_batch_begin
        if moment is not None:
            try:
                moment(ctx)
            except BaseException as error:
                spans.fail_begin(error)
                raise

    def end_batch(self, losses: Mapping[str, torch.Tensor] | None = None) -> None:
        """A batch ends.

        Args:
            losses: of it, where they are not known yet: name to 0-d tensor.
        """
        ctx, _, opened = self._run or self._unprepared()
        if not self._leave_batch(ctx, opened, losses):
            super().end_batch(losses)

    def begin_update(self) -> list[tuple[str, str]]:
        """The update is about to be made; gradients are clipped where a plugin does that.

        Returns:
            Who wants it skipped and why; then ``end_update`` and ``optimizer_step`` do not come.
        """
        ctx, spans, opened = self._run or self._unprepared()
        ends_batch = self.ends_batch_before_update
        if self._update_at != self.bus.freezes or not (
            self._leave_batch(ctx, opened) if ends_batch else "run_step" in opened
        ):
            return super().begin_update()
        if self._losses:
            ctx.losses = self._losses
        ctx.grad_norm = None
        opened["optimizer_step"] = self._update  # type: ignore[assignment]  # none: not straight
        moment = ctx.emit.on_optimizer_step_begin
        if moment is not None:
            try:
                moment(ctx)
            except BaseException as error:
                spans.fail_begin(error)
                raise
        return []

    def end_update(self, *, committed: bool = True) -> bool:
        """The update was made; nothing where none was begun.

        Args:
            committed: False: a loss scaler left it out.

        Returns:
            Whether the step's update was committed.
        """
        ctx, _, opened = self._run or self._unprepared()
        span, entered = opened.popitem()
        if entered is not self._update:
            opened[span] = entered
            return super().end_update(committed=committed)
        ctx.committed = committed
        ctx.updates += committed
        moment = ctx.emit.on_optimizer_step_end
        if moment is not None:
            moment(ctx)
        return ctx.committed

    def end_step(self) -> None:
        """A step ends, whose update was made or given up."""
        ctx, _, opened = self._run or self._unprepared()
        span, entered = opened.popitem()
        if entered is not self._step:
            opened[span] = entered
            super().end_step()
            return
        ctx.losses = self._losses or {}
        moment = ctx.emit.on_step_end
        if moment is not None:
            moment(ctx)
        self._since = perf_counter()

    def begin_forward(self) -> None:
        """The forward pass begins."""
        ctx, spans, opened = self._run or self._unprepared()
        if self._forward is None or self._steps_at != self.bus.freezes or "forward" in opened:
            super().begin_forward()
            return
        opened["forward"] = self._forward
        moment = ctx.emit.on_forward_begin
        if moment is not None:
            try:
                moment(ctx)
            except BaseException as error:
                spans.fail_begin(error)
                raise

    def end_forward(self, outputs: Any) -> Any:
        """The forward pass is over.

        Returns:
            The outputs, or what a plugin has put in their place.
        """
        ctx, _, opened = self._run or self._unprepared()
        span, entered = opened.popitem()
        if entered is not self._forward:
            opened[span] = entered
            return super().end_forward(outputs)
        ctx.model_outs = outputs
        moment = ctx.emit.on_forward_end
        if moment is not None:
            moment(ctx)
        return ctx.model_outs

    # ---- inside -------------------------------------------------------------------------------

    def _open_step(self, ctx: Context, spans: OpenSpans, opened: Opened) -> bool:
        """Begins a step; whether the bus is still as it was."""
        position = ctx.position
        ctx.step_id, ctx.global_step_id = position.step, position.global_step
        position.step += 1
        position.global_step += 1
        ctx.committed, ctx.losses, ctx.batches, self._losses = False, {}, [], None
        ctx.data_wait = perf_counter() - self._since
        opened["run_step"] = self._step  # type: ignore[assignment]  # none: not straight
        moment = ctx.emit.on_step_begin
        if moment is None:
            return True
        try:
            moment(ctx)
        except BaseException as error:
            spans.fail_begin(error)
            raise
        return self._steps_at == self.bus.freezes

    def _leave_batch(
        self, ctx: Context, opened: Opened, losses: Mapping[str, torch.Tensor] | None = None
    ) -> bool:
        """Ends a batch that is the innermost span; whether it was, and the bus still as it was."""
        span, entered = opened.popitem()
        if entered is not self._batch:
            opened[span] = entered
            return False
        if losses:
            ctx.losses = dict(losses)
        is_all = ctx.weight == 1.0 and not self._losses
        self._losses = ctx.losses if is_all else more_losses(self._losses, ctx.losses, ctx.weight)
        moment = ctx.emit.on_batch_end
        if moment is None:
            return True
        moment(ctx)
        return self._steps_at == self.bus.freezes

    def _look(self, ctx: Context, spans: OpenSpans) -> None:
        """Sees also whether only moments surround the spans of a step, and nobody decides."""
        super()._look(ctx, spans)
        freezes = ctx.bus.freezes
        self._step, self._batch = spans.plain("run_step"), spans.plain("run_batch")
        self._forward, self._update = spans.plain("forward"), spans.plain("optimizer_step")
        is_plain = self._step is not None and self._batch is not None
        self._steps_at = freezes if is_plain else -1
        is_plain = self._update is not None and not is_decided(ctx)
        self._update_at = freezes if is_plain else -1
