"""An optimizer that was made of whole parameters gets the shards in their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import Tensor
from torch.optim import LBFGS, Adafactor, Rprop

from hatbus.errors import JobError

Tensors = Mapping[int, tuple[Tensor, Any]]
"""The id of each whole parameter, the parameter, and the shard that took its place."""
_OF_WHOLE: Final = (LBFGS,)
"""Optimizers that see all parameters as one vector."""
_FAIL: Final = (Adafactor, Rprop)
"""Optimizers of which torch (2.13) cannot make a step with shards."""


def check_optimizer(optimizer: Any) -> None:
    """Refuses an optimizer that cannot update shards.

    Raises:
        JobError: it has made steps with whole parameters, looks at all parameters as one vector, or
            does what torch cannot do with shards.
    """
    for one in with_inner(optimizer):
        name = type(one).__name__
        if isinstance(one, _OF_WHOLE):
            raise JobError(
                f"optimizer {name} needs whole parameters, and the model is to be in shards; "
                "choose another, or parallel = 'ddp'"
            )
        if isinstance(one, _FAIL):
            raise JobError(
                f"torch cannot make a step of optimizer {name} with a model in shards; choose "
                "another (Adam, AdamW, Adagrad, SGD), or parallel = 'ddp'"
            )
        held = one.state.values() if hasattr(one, "state") else ()
        if not all(map(_is_as_built, held)):
            raise JobError(
                f"optimizer {name} has made steps with whole parameters, and the model is to be "
                "in shards; give a new one: a resume restores what it keeps"
            )


def hand_over(optimizer: Any, shards: Tensors) -> None:
    """Puts shards in the places of whole parameters, in an optimizer and those inside it.

    What it made of them when it was built, as Adagrad its sums, is sharded as they are.

    Args:
        optimizer: changed in place.
        shards: by the ids of the whole parameters; other parameters stay.
    """
    for one in with_inner(optimizer):
        for group in one.param_groups:
            parameters: list[Any] = group["params"]  # the list itself: some keep it elsewhere too
            for number, parameter in enumerate(parameters):
                if id(parameter) not in shards:
                    continue
                shard = parameters[number] = shards[id(parameter)][1]
                held = one.state.pop(parameter, None) if hasattr(one, "state") else None
                if held:
                    one.state[shard] = {k: _sharded(v, shard) for k, v in held.items()}


def _sharded(value: Any, shard: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    if (
        not isinstance(value, Tensor)
        or value.shape != shard.shape
        or not hasattr(shard, "to_local")
    ):
        return value
    return distribute_tensor(value, shard.device_mesh, shard.placements, src_data_rank=None)


def _is_as_built(held: Any) -> bool:
    """Whether what an optimizer keeps of a parameter is what it makes before its first step."""
    return not held or (isinstance(held, dict) and "step" in held and not int(held["step"]))


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
