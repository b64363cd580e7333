"""What a model gives for every batch of a loader, beside a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from hatbus import rng
from hatbus.bus.moments import emit_after_error
from hatbus.data.feed import generators_of, length_of
from hatbus.data.moving import to_device
from hatbus.data.seeded import seed_of
from hatbus.data.workers import own_iteration
from hatbus.errors import DataError, JobError, did_you_mean
from hatbus.evaluation.aside import aside
from hatbus.evaluation.numbered import can_start_at, numbered
from hatbus.loop.modes import eval_mode
from hatbus.loop.weights import EMA, RAW
from hatbus.parallel.sharding import is_sharded

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
    if any(feed.loader is loader for feed in training.data.feeds.values()):
        loader = own_iteration(loader)
    with aside(bus, training, weights) as ctx, _generators_kept(loader):
        view = weights or (EMA if EMA in ctx.weights.names else RAW)
        with ctx.weights.showing(view), eval_mode(ctx.all_modules):
            ctx.task, ctx.emit = task, ctx.bus.scopes[task]
            ctx.data_loader, ctx.step_id = loader, 0
            try:
                with _within_prediction(ctx):
                    yield from _streamed(ctx, loader)
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


@contextmanager
def _within_prediction(ctx: Context) -> Iterator[None]:
    """Emits the begin of a prediction now and its end on the way out."""
    begin, end = ctx.emit.on_prediction_begin, ctx.emit.on_prediction_end
    try:
        if begin is not None:
            begin(ctx)
        yield
    except BaseException as error:
        outer, ctx.exception = ctx.exception, error
        emit_after_error(end, error, ctx)
        ctx.exception = outer
        raise
    if end is not None:
        end(ctx)


def _streamed(ctx: Context, loader: Any) -> Iterator[Any]:
    """The outputs one after the other; random numbers between two of them are the caller's."""
    with rng.fenced():
        chance = int(torch.randint(2**62, ()))
    outputs = _outputs(ctx, loader, chance)
    while True:
        with rng.fenced(), torch.no_grad():
            found = next(outputs, None)
        if found is None:
            return
        yield found[0]


def _outputs(ctx: Context, loader: Any, chance: int) -> Iterator[tuple[Any]]:
    """Each batch's outputs; the step counts the batches.

    What is drawn for a batch is a function of its number: a prediction that goes on behind some
    batches gives what the whole one would have given.
    """
    processor: Any = ctx.bus.members["core.batch_processor"].plugin
    has_loss = getattr(processor, "loss", None) is not None
    is_split = processor.call_of(ctx).splits if hasattr(processor, "call_of") else has_loss
    first, length = ctx.step_id, length_of(loader)
    if first and length is not None and first >= length:
        return  # all of it is behind
    begin = first if can_start_at(loader) else 0
    batches = numbered(loader, begin, equal=is_sharded(ctx.model))
    for number in count(begin):
        _seed(ctx, "batch", chance, number)
        found = next(batches, None)
        if found is None:
            return
        if number < first:
            continue
        samples, batch = found
        _seed(ctx, "forward", chance, number)
        ctx.batch = to_device(_paired(batch, has_loss) if is_split else batch, ctx.device)
        ctx.model_outs = None
        ctx.model_outs = ctx.emit.forward(ctx)
        ctx.emit.write_outputs(ctx, samples)
        yield (ctx.model_outs,)
        ctx.step_id += 1


def _seed(ctx: Context, what: str, *parts: int) -> None:
    seed = seed_of(what, *parts)
    rng.seed_all(seed)
    if ctx.device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def _paired(batch: Any, has_loss: bool) -> Any:
    """A batch of inputs and a target; of inputs alone the target is None.

    Where there is no loss, what is no tuple or list may be a whole batch, and is left as it is.
    """
    if isinstance(batch, (tuple, list)) and batch:
        return batch if len(batch) > 1 else (batch[0], None)
    return (batch, None) if has_loss else batch


@contextmanager
def _generators_kept(loader: Any) -> Iterator[None]:
    """The loader's own random generators are afterwards as before."""
    kept = [(one, one.get_state()) for one in generators_of(loader)]
    try:
        yield
    finally:
        for one, state in kept:
            one.set_state(state)
