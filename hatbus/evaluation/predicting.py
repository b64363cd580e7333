"""What a model gives for every batch of a loader, beside a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hatbus import rng
from hatbus.data.feed import generators_of, length_of
from hatbus.data.moving import to_device
from hatbus.data.workers import iterated, own_iteration
from hatbus.errors import DataError, JobError, did_you_mean
from hatbus.evaluation.aside import aside
from hatbus.loop.modes import eval_mode
from hatbus.loop.weights import EMA, RAW

if TYPE_CHECKING:
    from hatbus.bus.bus import Bus
    from hatbus.loop.context import Context


def predictions(
    bus: Bus, training: Context, loader: Any, weights: str | None, task: str | None
) -> Iterator[Any]:
    """The model's outputs, batch by batch; see ``Trainer.predict``.

    Args:
        bus: of the trainer.
        training: its context, which is left as it is.
        loader: the batches.
        weights: the weight view; None: EMA if there is one, else raw.
        task: whose batches they are.
    """
    _check(loader, task, training.data.tasks)
    with aside(bus, training, weights) as ctx, _generators_kept(loader):
        view = weights or (EMA if EMA in ctx.weights.names else RAW)
        with ctx.weights.showing(view), eval_mode(ctx.all_modules):
            ctx.task, ctx.emit = task, ctx.bus.scopes[task]
            outputs, random = _outputs(ctx, _once(loader, training)), _OwnRandom()
            while True:
                with random, torch.no_grad():
                    found = next(outputs, None)
                if found is None:
                    break
                try:
                    yield found[0]
                except GeneratorExit:  # whoever asked wants no more
                    return
            if not ctx.step_id:
                raise DataError("the loader to predict gave no batch; check its data set")


def _check(loader: Any, task: str | None, tasks: Any) -> None:
    """Refuses what cannot be predicted."""
    if isinstance(loader, Mapping):
        raise DataError("predict takes one loader; give that of one task, and task= its name")
    if task is not None and task not in tasks:
        hint = did_you_mean(task, tasks) or "; it has no tasks"
        raise JobError(f"predict: the run has no task {task!r}{hint}")
    if length_of(loader) == 0:
        raise DataError("the loader to predict has length 0; check its data set")


def _outputs(ctx: Context, batches: Iterator[Any]) -> Iterator[tuple[Any]]:
    """Each batch's outputs; the step counts the batches."""
    processor: Any = ctx.bus.members["core.batch_processor"].plugin
    has_loss = getattr(processor, "loss", None) is not None
    is_split = processor.call_of(ctx).splits if hasattr(processor, "call_of") else has_loss
    ctx.step_id = 0
    for batch in batches:
        ctx.batch = to_device(_paired(batch, has_loss) if is_split else batch, ctx.device)
        ctx.model_outs = None
        yield (ctx.emit.forward(ctx),)
        ctx.step_id += 1


def _paired(batch: Any, has_loss: bool) -> Any:
    """A batch of inputs and a target; of inputs alone the target is None.

    Where there is no loss, what is no tuple or list may be a whole batch, and is left as it is.
    """
    if isinstance(batch, (tuple, list)) and batch:
        return batch if len(batch) > 1 else (batch[0], None)
    return (batch, None) if has_loss else batch


def _once(loader: Any, training: Context) -> Iterator[Any]:
    """One pass from the start, every sample on one rank only, where the loader can be told."""
    if any(feed.loader is loader for feed in training.data.feeds.values()):
        loader = own_iteration(loader)
    if hasattr(loader, "each_once"):
        return iterated(loader.each_once())
    if hasattr(loader, "set_position"):
        loader.set_position(0, 0)
    return iterated(loader)


@contextmanager
def _generators_kept(loader: Any) -> Iterator[None]:
    """The loader's own random generators are afterwards as before."""
    kept = [(one, one.get_state()) for one in generators_of(loader)]
    try:
        yield
    finally:
        for one, state in kept:
            one.set_state(state)


class _OwnRandom:
    """The prediction goes on with random numbers of its own, and the caller with the caller's."""

    def __init__(self) -> None:
        self._own = rng.capture()
        self._outside = self._own

    def __enter__(self) -> None:
        self._outside = rng.capture()
        rng.restore(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = rng.capture()
        rng.restore(self._outside)
