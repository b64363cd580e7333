"""What happens to one batch, and to the gradients of one step.

``BatchProcessor`` is the core's own implementation of the spans from ``run_batch`` to
``optimizer_step``. Give the trainer one of your own for full control, or replace a single span
from a plugin. Source: ``hat`` batch processors (``need_grad_update``, ``loss_collector``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.batches.counted_twice import counted_twice
from hatbus.batches.loss_collectors import collect_losses, losses_if_any, named_losses
from hatbus.batches.model_call import PAIRS, TAKES, ModelCall, split
from hatbus.errors import JobError, did_you_mean
from hatbus.events.declare import hookimpl
from hatbus.log import log
from hatbus.option_values import one_of

if TYPE_CHECKING:
    from hatbus.loop.context import Context

Loss = Callable[[Any, Any], Any]
_is_profiled: Final = getattr(torch.autograd, "_profiler_enabled", lambda: True)


class BatchProcessor:
    """Forward, loss and backward of a batch; clipping and update of a step.

    Args:
        loss: ``loss(model_outs, target)`` returning a 0-d tensor or ``{name: 0-d tensor}``; or one
            such function per task. Without it the model gets the whole batch and its outputs carry
            the losses, or a plugin computes them (``compute_loss``).
        need_grad_update: run backward and update; False for evaluation, which needs no loss: a
            model may return losses in training and predictions in eval mode.
        loss_collector: ``loss_collector(model_outs)`` returning the losses, when ``loss`` is None:
            a 0-d tensor, a list of them, or a mapping, nested or not. By default every entry whose
            name contains "loss" (``hatbus.batches.collect_losses``).
        model_takes: how the model gets its inputs. None: a mapping by keywords where ``forward``
            takes all its keys, anything else as one argument; of a pair the inputs, if there is a
            ``loss`` or a plugin that computes losses. ``"keywords"``: a mapping always by keywords;
            ``"argument"``: never; ``"batch"``: the whole batch as one argument.

    Attributes:
        in_place_of_loss: gives what a training calls in the place of a loss (``compile``), or None.
    """

    def __init__(
        self,
        loss: Loss | Mapping[str, Loss] | None = None,
        *,
        need_grad_update: bool = True,
        loss_collector: Callable[[Any], Any] | None = None,
        model_takes: str | None = None,
    ) -> None:
        if model_takes is not None:
            one_of("batch_processor: model_takes", model_takes, TAKES)
        self.loss = loss
        self.model_takes = model_takes
        self.need_grad_update = need_grad_update
        self.loss_collector = loss_collector or collect_losses
        self._per_task = isinstance(loss, Mapping)
        self.in_place_of_loss: Callable[[Loss], Loss] | None = None
        self._asked: dict[str | None, ModelCall] = {}
        self._looked_at: set[str | None] = set()

    @hookimpl(trylast=True)
    def run_batch(self, ctx: Context) -> dict[str, torch.Tensor]:
        """Forward, loss, and backward if gradients are wanted."""
        emit, batch, call = ctx.emit, ctx.batch, self._asked.get(ctx.task)
        is_same = call is not None and call.scope is emit.compute_loss and call.model is ctx.model
        is_pair = type(batch) in PAIRS and len(batch) == 2
        losses: dict[str, torch.Tensor]
        if is_same and is_pair and call.is_direct and type(batch[0]) is torch.Tensor:  # type: ignore[union-attr]
            ctx.model_outs = outs = ctx.wrapped_model(batch[0])
            losses = _by_name(self.loss(outs, batch[1]), ctx.task)  # type: ignore[operator, misc]
        else:
            ctx.model_outs = emit.forward(ctx)
            losses = emit.compute_loss(ctx)
        ctx.losses = losses
        if self.need_grad_update:
            (loss,) = losses.values() if len(losses) == 1 else (self._total(losses, ctx),)
            ctx.loss = loss if ctx.weight == 1.0 else loss * ctx.weight
            emit.backward(ctx)
        return losses

    @hookimpl(trylast=True)
    def forward(self, ctx: Context) -> Any:
        """``model(inputs)``, as ``model_takes`` says; ``task=`` when the model takes it."""
        ctx.model_outs = outs = self.call_of(ctx)(ctx)
        return outs

    forward.keeps = True  # type: ignore[attr-defined]  # the outputs: see hatbus.bus.moments

    def call_of(self, ctx: Context) -> ModelCall:
        """How the model is called in the scope of the present task."""
        call = self.known_call(ctx)
        if call is None:
            call = ModelCall(ctx, self.model_takes, has_loss=self.loss is not None)
            call.is_direct = call.takes_first and not self._per_task and self._does_all(ctx)
            self._asked = {**self._asked, ctx.task: call}
        return call

    def known_call(self, ctx: Context) -> ModelCall | None:
        """How the model was called in this scope, if model and plugins are still the same."""
        call = self._asked.get(ctx.task)
        return call if call is not None and call.is_for(ctx) else None

    def _does_all(self, ctx: Context) -> bool:
        """Whether nobody hears, surrounds or replaces forward and loss: then they are one piece."""
        if self.in_place_of_loss is not None and self.need_grad_update:
            return False
        emit, mine = ctx.emit, BatchProcessor
        pairs = (emit.forward, mine.forward), (emit.compute_loss, mine.compute_loss)
        return all(
            getattr(called, "__self__", None) is self and called.__func__ is own
            for called, own in pairs
        )

    @hookimpl(trylast=True)
    def compute_loss(self, ctx: Context) -> dict[str, torch.Tensor]:
        """The losses by name."""
        if self.loss is None:
            if not self.need_grad_update:  # models may return losses in training only
                return losses_if_any(self.loss_collector, ctx.model_outs)
            return named_losses(self.loss_collector(ctx.model_outs), ctx.task)
        loss: Any = self.loss_of(ctx.task) if self._per_task else self.loss
        if self.in_place_of_loss is not None and self.need_grad_update:
            loss = self.in_place_of_loss(loss)
        return _by_name(loss(ctx.model_outs, split(ctx.batch)[1]), ctx.task)

    @hookimpl(trylast=True)
    def backward(self, ctx: Context) -> bool:
        """Adds the gradients of ``ctx.loss``."""
        ctx.loss.backward()  # type: ignore[union-attr]  # run_batch has set it
        return True

    @hookimpl(trylast=True)
    def clip_gradients(self, ctx: Context) -> bool:
        """Clips nothing; a plugin may."""
        return False

    @hookimpl(trylast=True)
    def optimizer_step(self, ctx: Context) -> bool:
        """Makes the update, if gradients are wanted."""
        if not self.need_grad_update:
            return False
        ctx.optimizer.step()  # type: ignore[union-attr]  # a training run has one
        return True

    def adopt_loss(self, loss: Loss | Mapping[str, Loss] | None) -> None:
        """Takes a loss, or one per task, from another processor."""
        self.loss = loss
        self._per_task = isinstance(loss, Mapping)

    def _total(self, losses: dict[str, torch.Tensor], ctx: Context) -> torch.Tensor:
        """The sum of a batch's losses; warns, at a task's first batch, of losses in it twice."""
        if ctx.task not in self._looked_at:
            self._looked_at.add(ctx.task)
            if ctx.rank == 0:
                warn_of_twice(losses, ctx.task)
        return total(losses)

    def loss_of(self, task: str | None) -> Loss:
        """The loss of a task.

        Raises:
            JobError: no loss was given for it.
        """
        losses: Any = self.loss
        if task not in losses:
            raise JobError(f"no loss for task {task!r}{did_you_mean(str(task), losses)}")
        found: Loss = losses[task]
        return found


def _by_name(found: Any, task: str | None) -> dict[str, torch.Tensor]:
    """What a loss function returned as losses by name; the usual one is called "loss"."""
    if type(found) is torch.Tensor and found.ndim == 0:
        return {"loss": found}
    return named_losses(found, task)


def _torchs_own(function: Any) -> Any:
    """A function of torch's; something else in the place of one that somebody has replaced."""
    code = getattr(function, "__code__", None)
    is_its_own = code is not None and Path(torch.__file__).parent in Path(code.co_filename).parents
    return function if is_its_own else object()


_TORCHS_OWN: Final = _torchs_own(torch.optim.Optimizer.zero_grad)


def clear_gradients(optimizer: Any) -> None:
    """Sets the gradient of every parameter to None: what ``optimizer.zero_grad()`` does.

    torch's own takes some 10 us for it, most of them for a label in a profile, so it is called
    while a profiler is on; and so is whatever an optimizer has in the place of torch's own.
    """
    clear = optimizer.zero_grad
    if getattr(clear, "__func__", None) is not _TORCHS_OWN or _is_profiled():
        clear()
        return
    for group in clear.__self__.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def warn_of_twice(losses: dict[str, torch.Tensor], task: str | None) -> None:
    """Says which losses hold others, so that these count more than once in the sum."""
    where = "" if task is None else f"task {task!r}: "
    for name, parts in counted_twice(losses).items():
        log.warning(
            "%sloss %r holds %s, and all losses are summed, so what it holds is trained twice; "
            "return the total or its parts, or the total as %s.detach()",
            where,
            name,
            ", ".join(map(repr, parts)),
            name,
        )


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of a batch's losses."""
    return torch.stack(list(losses.values())).sum()
