"""The events of a run that is under way, as a loop of somebody else's tells them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar, Never

from hatbus.errors import HookError
from hatbus.log import log
from hatbus_hosts.work import add_losses

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from hatbus import Context
    from hatbus.loop import OpenSpans


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
        self._run: tuple[Context, OpenSpans] | None = None
        self._losses: dict[str, torch.Tensor] = {}
        self._since, self.is_updating, self.has_failed = 0.0, False, False

    @property
    def is_running(self) -> bool:
        """Whether a run is under way."""
        return self._run is not None

    # ---- epochs, steps, batches ---------------------------------------------------------------

    def begin_epoch(self) -> None:
        """An epoch begins, or the rest of one in a resumed run; once, however often it is said."""
        ctx, spans = self._run or self._unprepared()
        if spans.is_open("run_epoch"):
            return
        position, known = ctx.position, ctx.steps_per_epoch
        is_left_over = known is not None and position.step >= known > 0
        ctx.epoch_id, ctx.step_id = position.epoch, position.step - is_left_over
        ctx.global_step_id = position.global_step - is_left_over
        spans.enter("run_epoch")
        if is_left_over:  # saved after an epoch's last step: its end is still to come
            self.end_epoch()
            self.begin_epoch()

    def end_epoch(self, *, is_complete: bool = True) -> None:
        """An epoch ends.

        Args:
            is_complete: whether it is behind the run; False: it was cut short, to be gone on with.
        """
        ctx, spans = self._run or self._unprepared()
        if spans.is_open("run_epoch"):
            self.end_step()
            if is_complete or ctx.position.step == ctx.steps_per_epoch:
                ctx.position.epoch, ctx.position.step = ctx.position.epoch + 1, 0
            spans.leave("run_epoch")

    def begin_step(self) -> None:
        """A step begins; once, however often it is said."""
        ctx, spans = self._run or self._unprepared()
        if spans.is_open("run_step"):
            return
        if not spans.is_open("run_epoch"):
            self.begin_epoch()
        position = ctx.position
        ctx.step_id, ctx.global_step_id = position.step, position.global_step
        position.step += 1
        position.global_step += 1
        ctx.committed, ctx.losses, ctx.batches, self._losses = False, {}, [], {}
        self.is_updating = False
        ctx.data_wait = time.perf_counter() - self._since
        spans.enter("run_step")

    def end_step(self) -> None:
        """A step ends, whose update was made or given up."""
        ctx, spans = self._run or self._unprepared()
        if not spans.is_open("run_step"):
            return
        if spans.is_open("optimizer_step"):
            self.end_update(committed=False)
        if spans.is_open("run_batch"):
            self.end_batch()
        ctx.losses = self._losses
        spans.leave("run_step", ctx.committed)
        self._since = time.perf_counter()

    def begin_batch(self, batch: Any, weight: float = 1.0) -> None:
        """A batch begins; it opens its step.

        Args:
            batch: what the loader gave.
            weight: its share in the step's gradient.
        """
        ctx, spans = self._run or self._unprepared()
        if spans.is_open("run_step"):
            self.end_batch()
        else:
            self.begin_step()
        ctx.batch, ctx.model_outs, ctx.losses, ctx.weight = batch, None, {}, weight
        ctx.batches.append((None, batch, weight))
        spans.enter("run_batch")

    def end_batch(self, losses: Mapping[str, torch.Tensor] | None = None) -> None:
        """A batch ends.

        Args:
            losses: of it, where they are not known yet: name to 0-d tensor.
        """
        ctx, spans = self._run or self._unprepared()
        if not spans.is_open("run_batch"):
            return
        if spans.is_open("backward"):
            spans.leave("backward")
        if spans.is_open("forward"):
            spans.leave("forward", ctx.model_outs)
        if losses:
            ctx.losses = dict(losses)
        add_losses(self._losses, ctx.losses, ctx.weight)
        spans.leave("run_batch", ctx.losses)

    def begin_forward(self) -> None:
        """The forward pass begins."""
        _, spans = self._run or self._unprepared()
        spans.enter("forward")

    def end_forward(self, outputs: Any) -> Any:
        """The forward pass is over.

        Returns:
            The outputs, or what a plugin has put in their place.
        """
        ctx, spans = self._run or self._unprepared()
        ctx.model_outs = outputs
        return spans.leave("forward", outputs)

    def begin_backward(self, losses: Mapping[str, torch.Tensor], loss: torch.Tensor) -> None:
        """The backward pass begins.

        Args:
            losses: of the batch, by name.
            loss: what is differentiated.
        """
        ctx, spans = self._run or self._unprepared()
        ctx.losses, ctx.loss = dict(losses), loss
        spans.enter("backward")

    def end_backward(self) -> None:
        """The backward pass is over."""
        _, spans = self._run or self._unprepared()
        spans.leave("backward")

    def begin_update(self) -> list[tuple[str, str]]:
        """The update is about to be made; gradients are clipped where a plugin does that.

        Returns:
            Who wants it skipped and why; then ``end_update`` and ``optimizer_step`` do not come.
        """
        ctx, spans = self._run or self._unprepared()
        if not spans.is_open("run_step"):
            self.begin_step()
        elif self.ends_batch_before_update:
            self.end_batch()
        if self._losses:
            ctx.losses = self._losses
        reasons = self.decided()
        if not reasons:
            spans.enter("optimizer_step")
        return reasons

    def decided(self) -> list[tuple[str, str]]:
        """Clips gradients where a plugin does that, and asks whether to skip the update.

        Returns:
            Who wants it skipped, and why.
        """
        ctx, _ = self._run or self._unprepared()
        ctx.grad_norm, self.is_updating = None, True
        ctx.emit.clip_gradients(ctx)
        decide = ctx.emit.skip_update
        reasons: list[tuple[str, str]] = decide(ctx) if decide is not None else []
        self.is_updating = False
        for name, reason in reasons:
            log.info("step %d: update skipped by %s (%s)", ctx.global_step_id, name, reason)
        return reasons

    def end_update(self, *, committed: bool = True) -> None:
        """The update was made; nothing where none was begun.

        Args:
            committed: False: a loss scaler left it out.
        """
        _, spans = self._run or self._unprepared()
        if spans.is_open("optimizer_step"):
            spans.leave("optimizer_step", committed)

    def begin_validation(self) -> None:
        """A validation begins; once, however often it is said."""
        _, spans = self._run or self._unprepared()
        if not spans.is_open("validate"):
            spans.enter("validate", reason=self.name)

    def end_validation(self, metrics: Mapping[str, Any] | None = None) -> None:
        """A validation is over.

        Args:
            metrics: to publish, name to number.
        """
        ctx, spans = self._run or self._unprepared()
        self.begin_validation()
        if metrics:
            ctx.log(dict(metrics))
        spans.leave("validate", dict(metrics or {}))
        self._since = time.perf_counter()

    def is_in_batch(self, *_: Any) -> bool:
        """Whether a call of the model is one for the present batch: none of a validation is."""
        spans = self._spans
        return spans is not None and spans.is_open("run_batch") and not spans.is_open("validate")

    def is_in_forward(self) -> bool:
        """Whether a forward pass is under way."""
        return self._spans is not None and self._spans.is_open("forward")

    def _running(self) -> tuple[Context, OpenSpans]:
        return self._run or self._unprepared()

    def _unprepared(self) -> Never:
        raise HookError(
            f"{self.name} was attached in the middle of a run, so plugins could not prepare "
            "for it (on_loop_begin); attach it before the run starts"
        )
