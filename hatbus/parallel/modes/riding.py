"""Whether any process asks for something travels with the gradients that DDP exchanges anyway.

A message of its own costs gloo a millisecond in a step, however small it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, distributed
from torch.futures import Future

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.nn.parallel import DistributedDataParallel

MOST_BYTES: Final = 4 << 20
"""Gradients of more are left to DDP's own way, which divides them while it copies them."""
MOST_PROCESSES: Final = 1024
"""Up to so many, sums of squares of numbers below ``_STEPS`` are exact in float32."""
_STEPS: Final = 1 << 7
_DTYPES: Final = (torch.float32, torch.float64)


class Carried(NamedTuple):
    """What came with the gradients.

    Attributes:
        asks: whether any process asks for something.
        is_same_step: whether all are in the same step.
        clock: of the one that gave it, in seconds; to the microsecond, the same on all.
    """

    asks: bool
    is_same_step: bool
    clock: float


class Riding:
    """Adds five numbers to the first gradients of each exchange, which are averaged as ever.

    Args:
        wrapper: whose gradients they are.
    """

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self._group = wrapper.process_group
        self._world = distributed.get_world_size(self._group)
        self._row: Tensor | None = None
        self._numbers: Tensor | None = None
        self._sums: Tensor | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether there are numbers on the way, or waiting for the next exchange."""
        return self._numbers is not None

    def load(self, *, asks: bool, step: int, clock: float) -> None:
        """Gives what is to travel with the next exchange.

        Args:
            asks: whether this process asks for something.
            step: in which it is.
            clock: seconds; 0 on all processes but one.
        """
        place, seconds = step % _STEPS, int(clock)
        numbers = (float(asks), place, place * place, seconds, clock - seconds)
        self._numbers, self._sums = torch.tensor(numbers), None

    def unload(self) -> Carried | None:
        """What came with the gradients; None, on all processes, if none were exchanged."""
        found, self._numbers, self._sums = self._sums, None, None
        if found is None:
            return None
        asked, places, squared, seconds, rest = found.tolist()
        is_same = squared * self._world == places * places
        return Carried(asked > 0, is_same, seconds + rest)

    @torch.no_grad()
    def exchange(self, bucket: Any) -> Future[Tensor]:
        """Averages a bucket of gradients; the hook of DDP.

        What DDP does without one: each share is rounded, then they are added up.
        """
        row = gradients = bucket.buffer()
        size = len(gradients)
        if self._numbers is None or bucket.index():
            gradients.mul_(1.0 / self._world)
        else:
            row = self._row_of(size + len(self._numbers), gradients.dtype)
            torch.mul(gradients, 1.0 / self._world, out=row[:size])
            self._sums = row[size:].copy_(self._numbers)
        if not bucket.is_last():
            work: Any = distributed.all_reduce(row, group=self._group, async_op=True)
            averaged: Future[Tensor] = work.get_future().then(lambda done: done.value()[0][:size])
            return averaged
        distributed.all_reduce(row, group=self._group)  # a thread fewer; nothing is left to do
        return _done(row[:size])

    def _row_of(self, size: int, dtype: torch.dtype) -> Tensor:
        """A row that lasts; the gradients are copied out of it before the backward is over."""
        row = self._row
        if row is None or len(row) != size or row.dtype != dtype:
            row = self._row = torch.empty(size, dtype=dtype)
        return row


def _done(value: Tensor) -> Future[Tensor]:
    found: Future[Tensor] = Future()
    found.set_result(value)
    return found


def can_carry(wrapper: DistributedDataParallel, trained: Sequence[Tensor]) -> bool:
    """Whether numbers can travel with the gradients of a wrapper.

    Not where a plugin has given it a hook of its own, and where gradients are on an accelerator,
    sparse, many, or of a type with too few digits.

    Args:
        wrapper: of the model.
        trained: the parameters that it exchanges gradients of.
    """
    is_sparse = any(getattr(module, "sparse", False) for module in wrapper.modules())
    return (
        not is_sparse
        and not getattr(wrapper, "_comm_hooks", None)
        and distributed.get_world_size(wrapper.process_group) <= MOST_PROCESSES
        and all(one.device.type == "cpu" and one.dtype in _DTYPES for one in trained)
        and sum(one.numel() * one.element_size() for one in trained) <= MOST_BYTES
    )


def carrier_in(wrapper: Any, trained: Sequence[Tensor]) -> Riding | None:
    """What carries numbers with the gradients of a wrapper; None where that cannot be."""
    if not can_carry(wrapper, trained):
        return None
    found = Riding(wrapper)
    try:
        wrapper.register_comm_hook(None, lambda _, bucket: found.exchange(bucket))
    except RuntimeError:  # it has one of torch's own
        return None
    return found
