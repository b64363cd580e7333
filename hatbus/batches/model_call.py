"""How a model is called with a batch: which part of it, and whether by keywords.

A mapping goes in by keywords where the model's ``forward`` takes all of its keys, as that of a
Transformers model does, and as the one argument where it does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.bus.member import is_core
from hatbus.errors import JobError

if TYPE_CHECKING:
    from hatbus.loop.context import Context

TAKES: Final = ("keywords", "argument", "batch")
"""What ``model_takes`` may be, beside None."""
PAIRS: Final = frozenset({tuple, list})
"""What the usual pair of inputs and target is; others are looked at longer."""
_ANYTHING: Final = ["VAR_POSITIONAL", "VAR_KEYWORD"]


class ModelCall:
    """Calls the model of a run in the scope of one task.

    Args:
        ctx: of the run, in that scope.
        takes: as ``BatchProcessor`` has it.
        has_loss: whether there is a loss to give the target to.

    Attributes:
        model, scope: for which this is so: the model, and who computes its losses.
        splits: whether a pair is inputs and a target, of which the model gets the inputs.
        takes_first: whether a tensor that is the first of a pair is all that the model gets.
        is_direct: whether forward and loss may be called without the bus, as nobody else is there.
    """

    def __init__(self, ctx: Context, takes: str | None, *, has_loss: bool) -> None:
        self.model, self.scope = ctx.model, ctx.emit.compute_loss
        self._takes, self._has_loss = takes, has_loss
        self.splits = takes != "batch" and (has_loss or is_replaced(ctx))
        self._wants_task = "task" in arguments_of(ctx.model)
        self.takes_first = self.splits and has_loss and not self._wants_task
        self.is_direct = False
        self._keys: tuple[Any, ...] | None = None
        self._spreads = False

    def is_for(self, ctx: Context) -> bool:
        """Whether model and plugins are still the same."""
        return ctx.model is self.model and ctx.emit.compute_loss is self.scope

    def __call__(self, ctx: Context) -> Any:
        """The model's outputs for ``ctx.batch``."""
        inputs = ctx.batch
        if self.splits and (self._has_loss or is_pair(inputs)):
            inputs = split(inputs)[0]
        task = {"task": ctx.task} if self._wants_task else {}
        if not isinstance(inputs, torch.Tensor) and self._is_spread(inputs):
            return ctx.wrapped_model(**{**task, **inputs})
        return ctx.wrapped_model(inputs, **task)

    def _is_spread(self, inputs: Any) -> bool:
        """Whether these go in by keywords; looked at anew when the keys are others."""
        if self._takes in ("argument", "batch") or not isinstance(inputs, Mapping):
            return False
        keys = tuple(inputs)
        if keys != self._keys:
            is_named = all(isinstance(key, str) for key in keys)  # a TensorDict gives its rows
            self._spreads = is_named and self._takes_keys(keys)
            self._keys = keys if is_named else None
        return self._spreads

    def _takes_keys(self, keys: tuple[str, ...]) -> bool:
        if self._takes == "keywords":
            return True
        return by_keywords(self.model, keys)


def is_replaced(ctx: Context) -> bool:
    """Whether a plugin computes the losses in this scope, so that a batch has a target for it."""
    found = ctx.bus.implementations("compute_loss", ctx.task)
    return any(not one.wrapper and not is_core(one.plugin_name) for one in found)


def by_keywords(model: torch.nn.Module, keys: tuple[str, ...]) -> bool:
    """Whether a mapping with these keys goes into a model by keywords.

    Raises:
        JobError: some of its keys are arguments of the model, some are none.
    """
    signature = signature_of(model)
    if signature is None:
        return False
    parameters = [one for one in signature.parameters.values() if one.name != "task"]
    named = [one for one in parameters if one.kind.name not in _ANYTHING]
    task = {"task"} & set(signature.parameters)
    try:
        signature.bind(**dict.fromkeys({*keys, *task}))
    except TypeError:
        taken = {one.name for one in named if one.kind is not Parameter.POSITIONAL_ONLY}
        needed = {one.name for one in named if one.default is Parameter.empty}
        unknown = [key for key in keys if key not in taken]
        if len(named) < 2 or not needed <= set(keys) or len(unknown) == len(keys):
            return False
        known = ", ".join(repr(key) for key in keys if key in taken)
        raise JobError(
            f"{type(model).__name__}.forward takes {known} of a batch, but not "
            f"{', '.join(map(repr, unknown))}; leave that out in the loader (collate_fn), or, if "
            "the model takes the whole mapping as one argument, say so: "
            'batch_processor=BatchProcessor(model_takes="argument")'
        ) from None
    return True


def is_pair(batch: Any) -> bool:
    """Whether a batch is inputs and a target, or several."""
    return isinstance(batch, (tuple, list)) and len(batch) >= 2


def split(batch: Any) -> tuple[Any, Any]:
    """``(inputs, target)`` of a batch.

    Raises:
        JobError: the batch is no pair.
    """
    if is_pair(batch):
        return batch[0], batch[1] if len(batch) == 2 else batch[1:]
    raise JobError(
        f"a batch is a {type(batch).__name__}, not a pair (inputs, target); make the loader give "
        "pairs, or give no loss and let the model take the whole batch and return its losses"
    )


def signature_of(model: torch.nn.Module) -> Signature | None:
    """What a model's ``forward`` takes, wrappers looked through; None if it says nothing.

    A wrapper that passes on whatever it is given (``*args, **kwargs``) takes what the one module in
    it takes; so do compiled models.
    """
    inner: Any = model
    while (found := getattr(inner, "_orig_mod", None)) is not None:
        inner = found
    try:
        signature = inspect.signature(inner.forward)
    except (ValueError, TypeError):  # a traced one has no signature of Python's
        return None
    if [one.kind.name for one in signature.parameters.values()] != _ANYTHING:
        return signature
    inside = list(inner.children())
    return signature_of(inside[0]) if len(inside) == 1 else None


def arguments_of(model: torch.nn.Module) -> set[str]:
    """The names of what a model's ``forward`` takes; a compiled one takes what it was made of.

    A traced one has no signature of Python's.
    """
    inner: Any = model
    while (found := getattr(inner, "_orig_mod", None)) is not None:
        inner = found
    try:
        return set(inspect.signature(inner.forward).parameters)
    except ValueError:
        forward: Any = inner.forward
        return {argument.name for argument in forward.schema.arguments}
