"""Sharing among processes what nobody else shares: DDP knows the model alone, FSDP2 the shards."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from hatbus.events.declare import hookimpl
from hatbus.loop.structure import structure_of
from hatbus.parallel.sharding import is_shard, reshard, sharded_modules

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus.loop.context import Context


class ShareBeside:
    """Averages the gradients of the modules beside the model over the processes, once a step.

    Of a model in shards (FSDP2) also those that are in none; its buffers are then as with DDP.
    However a module is called, and how often: its gradients are complete when the step's last
    backward is over. Its buffers are then rank 0's everywhere, as DDP's are in a forward.
    """

    def __init__(self) -> None:
        self._structure, self._is_in_shards = -1, False

    @hookimpl(wrapper=True, tryfirst=True)
    def clip_gradients(self, ctx: Context) -> Generator[None, Any, Any]:
        """Shares them, before anybody unscales or clips."""
        if self._structure != structure_of(ctx):  # to look through a model takes time
            self._structure = structure_of(ctx)
            self._is_in_shards = bool(sharded_modules(ctx.model))
        own = _own(ctx, is_in_shards=self._is_in_shards)
        trained = [one for one in own if one.requires_grad and one.is_leaf]
        if trained:
            _average(trained)
        _from_first_rank(one for one in own if not isinstance(one, nn.Parameter))
        return (yield)


def share_at_start(ctx: Context) -> None:
    """Gives every process rank 0's weights and buffers of the modules beside the model."""
    if ctx.world_size > 1:
        reshard(ctx.model)
        _from_first_rank(_own(ctx, is_in_shards=bool(sharded_modules(ctx.model))))


def _own(ctx: Context, *, is_in_shards: bool) -> list[Tensor]:
    """Parameters and buffers that the model does not have, or does not share itself."""
    modules, mine = list(ctx.modules.values()), set[int]()
    if is_in_shards:
        modules.append(ctx.model)
    elif modules:
        mine = {id(one) for one in (*ctx.model.parameters(), *ctx.model.buffers())}
    every = (one for module in modules for one in (*module.parameters(), *module.buffers()))
    found = {id(one): one for one in every if id(one) not in mine and not is_shard(one)}
    return list(found.values())


def _average(trained: list[Tensor]) -> None:
    """Averages gradients in place; a parameter that has one on no rank gets none.

    Which ones have one travels with them.
    """
    have = [one.grad is not None for one in trained]
    used = trained[0].detach().new_tensor(have)
    for one in trained:
        if one.grad is None:
            one.grad = torch.zeros_like(one)
        elif one.grad.is_sparse:
            one.grad = one.grad.to_dense()
    _together([used, *(one.grad for one in trained if one.grad is not None)], _mean)
    if not all(have):  # only then there is something to read, for which a device would be waited
        for one, share in zip(trained, used.tolist(), strict=True):
            if not share:
                one.grad = None


def _mean(flat: Tensor) -> None:
    distributed.all_reduce(flat)
    flat.div_(distributed.get_world_size())


def _from_first_rank(tensors: Iterable[Tensor]) -> None:
    found = [one.detach() for one in tensors if one.numel()]
    _together(found, lambda flat: distributed.broadcast(flat, 0))


@torch.no_grad()
def _together(tensors: list[Tensor], exchange: Callable[[Tensor], Any]) -> None:
    """Exchanges tensors in one message per type, in place."""
    for dtype in dict.fromkeys(one.dtype for one in tensors):
        alike = [one for one in tensors if one.dtype == dtype]
        flat = torch.cat([one.flatten() for one in alike])
        exchange(flat)
        parts = torch.split(flat, [one.numel() for one in alike])
        for one, part in zip(alike, parts, strict=True):
            one.copy_(part.view_as(one))
