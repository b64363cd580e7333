"""The buffers of a model reach other processes in one message, not in one for each type."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import distributed as torchs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.nn.parallel import DistributedDataParallel


def send_at_once(wrapper: DistributedDataParallel) -> None:
    """Has DDP send the buffers of a model on CPUs, before each forward pass, as ``Buffers`` does.

    Batch norm has two types, and a small message costs gloo half a millisecond, whatever is in it.
    """
    if hasattr(wrapper, "_register_buffer_comm_hook"):  # torch has no public name for it
        where = torchs._BufferCommHookLocation.PRE_FORWARD  # noqa: SLF001 - the same
        wrapper._register_buffer_comm_hook(None, Buffers(wrapper), where)  # noqa: SLF001 - the same


class Buffers:
    """Gives every process the first one's buffers, the same bits as DDP gives.

    Args:
        wrapper: whose buffers they are; it has its own way with those that are no plain rows of
            numbers, or all of one type.
    """

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self._group = wrapper.process_group
        self._is_first = distributed.get_rank() == 0
        self._plainly: Any = wrapper._default_broadcast_coalesced  # noqa: SLF001 - what it would do
        self._shapes: list[Any] = []
        self._row: Tensor | None = None
        self._parts: list[Tensor] = []

    def __call__(self, _state: object, named: Mapping[str, Tensor]) -> None:
        """Sends them, or receives them in place."""
        buffers = list(named.values())
        shapes = [(one.shape, one.dtype, one.device, one.layout) for one in buffers]
        if shapes != self._shapes:
            self._shapes = shapes
            self._lay_out(buffers)
        if self._row is None:
            self._plainly(authoritative_rank=0)
        elif self._is_first:
            torch._foreach_copy_(self._parts, buffers)
            distributed.broadcast(self._row, 0, group=self._group)
        else:
            distributed.broadcast(self._row, 0, group=self._group)
            torch._foreach_copy_(buffers, self._parts)

    def _lay_out(self, buffers: list[Tensor]) -> None:
        """Makes a row of bytes with a place for each buffer, the widest numbers first."""
        self._row, self._parts = None, []
        are_plain = all(b.layout == torch.strided and b.device.type == "cpu" for b in buffers)
        if not are_plain or len({one.dtype for one in buffers}) < 2:
            return
        sizes = [one.numel() * one.element_size() for one in buffers]
        order = sorted(range(len(buffers)), key=lambda at: -buffers[at].element_size())
        ends = dict(zip(order, accumulate(sizes[at] for at in order), strict=True))
        self._row = row = torch.zeros(sum(sizes), dtype=torch.uint8)
        self._parts = [
            row[ends[at] - sizes[at] : ends[at]].view(one.dtype).view(one.shape)
            for at, one in enumerate(buffers)
        ]
