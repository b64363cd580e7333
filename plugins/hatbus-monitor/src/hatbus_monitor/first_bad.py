"""Finds the first tensor of a step that holds a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hatbus.parallel import is_sharded, local_tensor, reshard
from hatbus.rng import fenced
from hatbus_monitor.grad_monitor import stored
from hatbus_monitor.update_functions import flatten

if TYPE_CHECKING:
    from hatbus import Context


def first_bad_tensor(ctx: Context) -> str | None:
    """The first bad tensor of the present step, in the order of cause: batch, weights, outputs.

    Args:
        ctx: after the backward of the step's batches, before the update.

    Returns:
        In words; None when batch, weights and outputs are finite. Of a sharded model (FSDP2) every
        process has to ask, and is told what any of them found.
    """
    found = (
        _in_batches(ctx)
        or first_bad_value("the parameter", ctx.all_modules.named_parameters())
        or first_bad_value("the buffer", ctx.all_modules.named_buffers())
    )
    # The forward pass of a sharded model is one of all processes.
    return on_any_process(ctx, found) or on_any_process(ctx, _in_outputs(ctx))


def on_any_process(ctx: Context, found: str | None) -> str | None:
    """What any process found, of a sharded model; else what this one did."""
    if not is_sharded(ctx.model):
        return found
    answers: list[str | None] = [None] * ctx.world_size
    torch.distributed.all_gather_object(answers, found)
    return next((answer for answer in answers if answer), None)


def first_bad_value(kind: str, named: Iterable[tuple[str, Any]]) -> str | None:
    """The first of the named values that is bad: its kind, name, shape and how much of it is."""
    for name, value in named:
        bad = bad_count(value)
        if bad:
            return f"{kind} {name!r} {described(value, bad)}"
    return None


def bad_count(value: Any) -> int:
    """How many entries of a tensor are NaN or infinite; 0 for anything else."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return 0
    return int((~torch.isfinite(stored(local_tensor(value)))).sum())


def described(value: Tensor, bad: int) -> str:
    """``(8, 3), 5 of 24 entries, nan``."""
    found = stored(local_tensor(value))
    kinds = ["nan"] * bool(found.isnan().any()) + ["inf"] * bool(found.isinf().any())
    where = f"of shape {tuple(value.shape)}: " if value.dim() else ""
    share = f"{bad} of {value.numel()} entries are " if value.dim() else "= "
    return f"{where}{share}{' or '.join(kinds)}"


def _in_batches(ctx: Context) -> str | None:
    for task, batch, _ in ctx.batches:
        found = first_bad_value(f"the batch{_of(task)}, entry", flatten(batch).items())
        if found:
            return found
    return None


def _in_outputs(ctx: Context) -> str | None:
    """Runs the step's batches forward once more, on the raw model, watching every module.

    The training goes on as if that had not happened: random state and buffers are put back.
    """
    before = ctx.task, ctx.batch, ctx.model_outs, ctx.wrapped_model, ctx.emit
    ctx.wrapped_model = ctx.model  # a wrapper would wait for processes that do not search
    try:
        with fenced(), torch.no_grad(), _same_buffers(ctx.model):
            return _first_bad_output(ctx)
    finally:
        ctx.task, ctx.batch, ctx.model_outs, ctx.wrapped_model, ctx.emit = before
        reshard(ctx.model)


def _first_bad_output(ctx: Context) -> str | None:
    for task, batch, _ in ctx.batches:
        ctx.task, ctx.batch = task, batch
        ctx.emit = ctx.bus.emitter(task)
        with _Watch(ctx.model) as watch:
            ctx.emit.forward(ctx)
        if watch.found:
            return f"{watch.found}{_of(task)}"
    return None


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers, such as running statistics, are afterwards what they were, changed or replaced."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in kept:
            if not _is_same(buffer, value):  # one that cannot be written to has not changed
                buffer.copy_(value)
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, NaN for NaN."""
    return bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124 - NaN


def _of(task: str | None) -> str:
    return "" if task is None else f" of task {task!r}"


class _Watch:
    """Hooks on every module, for one forward pass; inner modules end before outer ones."""

    def __init__(self, model: nn.Module) -> None:
        self.found = ""
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        for name, module in self._model.named_modules():
            hook = self._hook(name or "the model")
            self._handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def look(module: nn.Module, _: Any, output: Any) -> None:
            if not self.found:
                kind = f"the output of {name!r} ({type(module).__name__})"
                leaves = ((path or "whole", leaf) for path, leaf in flatten(output).items())
                self.found = (first_bad_value(f"{kind}:", leaves) or "").replace(" 'whole'", "")

        return look
