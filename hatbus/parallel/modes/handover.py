"""An optimizer that was made of whole parameters gets the shards in their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from hatbus.errors import JobError

Tensors = Mapping[int, tuple[Tensor, Any]]
"""The id of each whole parameter, the parameter, and the shard that took its place."""


def check_fresh(optimizer: Any) -> None:
    """Refuses an optimizer that keeps something of the whole parameters already.

    Raises:
        JobError: it has made steps, or makes its state when it is built.
    """
    for one in with_inner(optimizer):
        if any(one.state.values() if hasattr(one, "state") else ()):
            raise JobError(
                f"optimizer {type(one).__name__} has a state of whole parameters already, and "
                "the model is to be sharded; give one that has made no step (Adagrad makes its "
                "state when it is built: shard the model by fully_shard before it, without "
                "parallel)"
            )


def hand_over(optimizer: Any, shards: Tensors) -> None:
    """Puts shards in the places of whole parameters, in an optimizer and those inside it.

    Args:
        optimizer: whose groups are changed in place.
        shards: by the ids of the whole parameters; other parameters stay.
    """
    for one in with_inner(optimizer):
        for group in one.param_groups:
            parameters: list[Any] = group["params"]  # the list itself: some keep it elsewhere too
            for number, parameter in enumerate(parameters):
                if id(parameter) in shards:
                    parameters[number] = shards[id(parameter)][1]


def with_inner(optimizer: Any) -> Iterator[Any]:
    """An optimizer and those that it wraps, each once."""
    known: set[int] = set()
    waiting = [optimizer]
    while waiting:
        one = waiting.pop()
        if id(one) in known or not isinstance(getattr(one, "param_groups", None), list):
            continue
        known.add(id(one))
        yield one
        for held in vars(one).values():
            waiting += held if isinstance(held, (list, tuple)) else [held]
