"""The events of a run that is under way, as a loop of somebody else's tells them."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Never

from hatbus import BatchProcessor
from hatbus.errors import HookError
from hatbus.log import log
from hatbus_hosts.work import more_losses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from hatbus import Context
    from hatbus.loop import OpenSpans

    Run = tuple[Context, OpenSpans, dict[str, Sequence[Any]]]


class Events:
    """From an epoch's begin to a validation's end; see ``hatbus_hosts.host``.

    Attributes:
        ctx: the state of the run; None before it begins.
        ends_batch_before_update: whether all of a batch is known before the update.
        has_failed: whether the last run ended with an error.
        is_updating: whether gradients are being looked at, and the model called only for that.
    """

    name: ClassVar[str] = "host"
    ends_batch_before_update: bool = True

    def __init__(self) -> None:
        self.ctx: Context | None = None
        self._spans: OpenSpans | None = None
        self._run: Run | None = None
        self._losses: dict[str, torch.Tensor] | None = None
        self._since, self.is_updating, self.has_failed = 0.0, False, False
        self._freezes = -1

    @property
    def is_running(self) -> bool:
        """Whether a run is under way."""
        return self._run is not None

    # ---- epochs, steps, batches ---------------------------------------------------------------

    def begin_epoch(self) -> None:
        """An epoch begins, or the rest of one in a resumed run; once, however often it is said."""
        ctx, spans, opened = self._run or self._unprepared()
        if "run_epoch" in opened:
            return
        position = ctx.position
        ctx.epoch_id, ctx.step_id = position.epoch, position.step
        ctx.global_step_id = position.global_step
        spans.enter("run_epoch")

    def end_epoch(self, *, is_complete: bool = True) -> None:
        """An epoch ends.

        Args:
            is_complete: whether it is behind the run; False: it was cut short, to be gone on with.
        """
        ctx, spans, opened = self._run or self._unprepared()
        if "run_epoch" in opened:
            self.end_step()
            if is_complete or ctx.position.step == ctx.steps_per_epoch:
                ctx.position.epoch, ctx.position.step = ctx.position.epoch + 1, 0
            spans.leave("run_epoch")

    def begin_step(self) -> None:
        """A step begins; once, however often it is said."""
        ctx, spans, opened = self._run or self._unprepared()
        if "run_step" in opened:
            return
        if "run_epoch" not in opened:
            self.begin_epoch()
        position = ctx.position
        ctx.step_id, ctx.global_step_id = position.step, position.global_step
        position.step += 1
        position.global_step += 1
        ctx.committed, ctx.losses, ctx.batches, self._losses = False, {}, [], None
        ctx.data_wait = perf_counter() - self._since
        self._look_again(ctx, spans)
        spans.enter("run_step")

    def end_step(self) -> None:
        """A step ends, whose update was made or given up."""
        ctx, spans, opened = self._run or self._unprepared()
        if "run_step" not in opened:
            return
        if "optimizer_step" in opened:
            self.end_update(committed=False)
        if "run_batch" in opened:
            self.end_batch()
        ctx.losses = self._losses or {}
        spans.leave("run_step", ctx.committed)
        self._since = perf_counter()

    def begin_batch(self, batch: Any, weight: float = 1.0) -> None:
        """A batch begins; it opens its step.

        Args:
            batch: what the loader gave.
            weight: its share in the step's gradient.
        """
        ctx, spans, opened = self._run or self._unprepared()
        if "run_step" not in opened:
            self.begin_step()
        elif "run_batch" in opened:
            self.end_batch()
        ctx.batch, ctx.model_outs, ctx.losses, ctx.weight = batch, None, {}, weight
        ctx.batches.append((None, batch, weight))
        self._look_again(ctx, spans)
        spans.enter("run_batch")

    def end_batch(self, losses: Mapping[str, torch.Tensor] | None = None) -> None:
        """A batch ends.

        Args:
            losses: of it, where they are not known yet: name to 0-d tensor.
        """
        ctx, spans, opened = self._run or self._unprepared()
        if "run_batch" not in opened:
            return
        if "backward" in opened:
            spans.leave("backward")
        if "forward" in opened:
            spans.leave("forward", ctx.model_outs)
        if losses:
            ctx.losses = dict(losses)
        self._losses = more_losses(self._losses, ctx.losses, ctx.weight)
        spans.leave("run_batch", ctx.losses)

    def begin_forward(self) -> None:
        """The forward pass begins."""
        _, spans, _ = self._run or self._unprepared()
        spans.enter("forward")

    def end_forward(self, outputs: Any) -> Any:
        """The forward pass is over.

        Returns:
            The outputs, or what a plugin has put in their place.
        """
        ctx, spans, _ = self._run or self._unprepared()
        ctx.model_outs = outputs
        return spans.leave("forward", outputs)

    def begin_backward(self, losses: Mapping[str, torch.Tensor], loss: torch.Tensor) -> None:
        """The backward pass begins.

        Args:
            losses: of the batch, by name.
            loss: what is differentiated.
        """
        ctx, spans, _ = self._run or self._unprepared()
        ctx.losses, ctx.loss = dict(losses), loss
        spans.enter("backward")

    def end_backward(self) -> None:
        """The backward pass is over."""
        _, spans, _ = self._run or self._unprepared()
        spans.leave("backward")

    def begin_update(self) -> list[tuple[str, str]]:
        """The update is about to be made; gradients are clipped where a plugin does that.

        Returns:
            Who wants it skipped and why; then ``end_update`` and ``optimizer_step`` do not come.
        """
        ctx, spans, opened = self._run or self._unprepared()
        if "run_step" not in opened:
            self.begin_step()
        elif self.ends_batch_before_update:
            self.end_batch()
        ctx.losses = self._losses or ctx.losses
        reasons = self.decided()
        if not reasons:
            spans.enter("optimizer_step")
        return reasons

    def decided(self) -> list[tuple[str, str]]:
        """Clips gradients where a plugin does that, and asks whether to skip the update.

        Returns:
            Who wants it skipped, and why.
        """
        ctx, spans, _ = self._run or self._unprepared()
        self._look_again(ctx, spans)
        ctx.grad_norm, decide = None, ctx.emit.skip_update
        if not is_decided(ctx):
            return []
        self.is_updating = True
        try:
            ctx.emit.clip_gradients(ctx)
            reasons: list[tuple[str, str]] = decide(ctx) if decide is not None else []
        finally:
            self.is_updating = False
        for name, reason in reasons:
            log.info("step %d: update skipped by %s (%s)", ctx.global_step_id, name, reason)
        return reasons

    def end_update(self, *, committed: bool = True) -> bool:
        """The update was made; nothing where none was begun.

        Args:
            committed: False: a loss scaler left it out.

        Returns:
            Whether the step's update was committed.
        """
        ctx, spans, opened = self._run or self._unprepared()
        if "optimizer_step" in opened:
            spans.leave("optimizer_step", committed)
        return ctx.committed

    def begin_validation(self) -> None:
        """A validation begins; once, however often it is said."""
        _, spans, opened = self._run or self._unprepared()
        if "validate" not in opened:
            spans.enter("validate", reason=self.name)

    def end_validation(self, metrics: Mapping[str, Any] | None = None) -> None:
        """A validation is over.

        Args:
            metrics: to publish, name to number.
        """
        ctx, spans, _ = self._run or self._unprepared()
        self.begin_validation()
        if metrics:
            ctx.log(dict(metrics))
        spans.leave("validate", dict(metrics or {}))
        self._since = perf_counter()

    def is_in_batch(self, *_: Any) -> bool:
        """Whether a call of the model is one for the present batch: none of a validation is."""
        spans = self._spans
        return spans is not None and spans.is_open("run_batch") and not spans.is_open("validate")

    def is_in_forward(self) -> bool:
        """Whether a forward pass is under way."""
        return self._spans is not None and self._spans.is_open("forward")

    def _look_again(self, ctx: Context, spans: OpenSpans) -> None:
        """Looks at the bus if it has changed."""
        if self._freezes != ctx.bus.freezes:
            self._look(ctx, spans)

    def _look(self, ctx: Context, spans: OpenSpans) -> None:
        """Sees what is to be known of the plugins as they are now; none of it matters here."""
        self._freezes = ctx.bus.freezes

    def running(self) -> tuple[Context, OpenSpans]:
        """The run that is under way: its state, and what is open in it.

        Raises:
            HookError: there is none.
        """
        return (self._run or self._unprepared())[:2]

    def _unprepared(self) -> Never:
        raise HookError(
            f"{self.name} was attached in the middle of a run, so plugins could not prepare "
            "for it (on_loop_begin); attach it before the run starts"
        )


def is_decided(ctx: Context) -> bool:
    """Whether a plugin clips gradients or has a say in the update."""
    clip = getattr(ctx.emit.clip_gradients, "__func__", None)
    return clip is not BatchProcessor.clip_gradients or ctx.emit.skip_update is not None
