"""Batch processors with the arguments of HAT's, for configs that name them.

Source: ``hat.engine.processors`` (``BasicBatchProcessor``, ``MultiBatchProcessor``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from hatbus.batches.batch_processor import BatchProcessor
from hatbus.errors import JobError, did_you_mean
from hatbus.events.declare import hookimpl

if TYPE_CHECKING:
    from hatbus.loop.context import Context

_ELSEWHERE: Final = {
    "enable_amp": "precision='fp16' (or 'bf16') of the trainer",
    "enable_apex": "precision='fp16' of the trainer",
    "grad_scaler": "precision='fp16' of the trainer, which has a scaler",
    "grad_accumulation_step": "accumulate=... of the trainer",
    "enable_channels_last": "model.to(memory_format=torch.channels_last) where it is made",
}
"""What another part of hatbus does, and how."""
_IDLE: Final = (None, False, 1)


class HatBatchProcessor(BatchProcessor):
    """A ``BatchProcessor`` with HAT's arguments; the model gets a batch as HAT gives it.

    A batch that is a tuple or list is unpacked: ``model(*batch)``; any other is the one argument.
    In a validation beside a trainer that has a ``loss``, it has that loss, and pairs are split.

    Args:
        need_grad_update: run backward and update; False for evaluation.
        batch_transforms: functions of a batch, in order, before the model.
        inverse_transforms: functions ``f(model_outs, batch)``, in order, after the model.
        loss_collector: ``loss_collector(model_outs)`` giving the losses; by default every entry
            named like a loss.
        delay_sync: hatbus always shares gradients once a step; accepted, and without effect.
        empty_cache: the same.
        enable_amp_dtype: the same; the trainer's ``precision`` says it.
        options: ``enable_amp``, ``grad_scaler``, ``grad_accumulation_step`` and others that the
            trainer has in hatbus; only what switches them off is accepted.

    Raises:
        JobError: an option that belongs elsewhere, or does not exist.
    """

    def __init__(
        self,
        need_grad_update: bool = True,
        batch_transforms: Sequence[Callable[[Any], Any]] | Callable[[Any], Any] | None = None,
        inverse_transforms: Sequence[Callable[[Any, Any], Any]] | None = None,
        loss_collector: Callable[[Any], Any] | None = None,
        delay_sync: bool = False,
        empty_cache: bool = False,
        enable_amp_dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(need_grad_update=need_grad_update, loss_collector=loss_collector)
        for name, value in options.items():
            if name not in _ELSEWHERE:
                hint = did_you_mean(name, _ELSEWHERE)
                raise JobError(f"batch_processor: unknown option {name!r}{hint}")
            if value is True or value not in _IDLE:
                raise JobError(
                    f"batch_processor: {name}={value!r}; in hatbus that is {_ELSEWHERE[name]}"
                )
        self.batch_transforms = _listed(batch_transforms)
        self.inverse_transforms = _listed(inverse_transforms)

    @hookimpl(trylast=True)
    def forward(self, ctx: Context) -> Any:
        """Transforms, model, inverse transforms."""
        for transform in self.batch_transforms:
            ctx.batch = transform(ctx.batch)
        batch = ctx.batch
        if self.loss is not None:
            outs = super().forward(ctx)
        elif isinstance(batch, (tuple, list)) and not hasattr(batch, "_fields"):
            outs = ctx.wrapped_model(*batch)
        else:
            outs = ctx.wrapped_model(batch)
        for inverse in self.inverse_transforms:
            outs = inverse(outs, batch)
        return outs


def _listed(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


PROCESSORS: Final = {
    "BatchProcessor": BatchProcessor,
    "BasicBatchProcessor": HatBatchProcessor,
    "MultiBatchProcessor": HatBatchProcessor,
}
"""The names that a config may give as ``type`` of a batch processor."""
