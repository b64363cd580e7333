"""Puts a model's parameters into shards over the processes: modes ``"fsdp2"`` and ``"hsdp"``."""

from __future__ import annotations

import atexit
import ctypes
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _NormBase

from hatbus.batches.precision import DTYPES
from hatbus.errors import JobError
from hatbus.log import log
from hatbus.parallel.modes.blocks import blocks_of
from hatbus.parallel.modes.exchange import plan_of
from hatbus.parallel.modes.handover import check_optimizer, hand_over
from hatbus.parallel.modes.materialise import check_can_start, is_on_meta, materialise
from hatbus.parallel.modes.meshes import data_mesh, share_over
from hatbus.parallel.sharding import sharded_modules

if TYPE_CHECKING:
    from hatbus.loop.context import Context
    from hatbus.parallel.modes.options import Parallel

_MMAP_THRESHOLD: Final = -3
"""glibc's ``M_MMAP_THRESHOLD`` (malloc.h): what is larger is mapped, and unmapped when freed."""
_LARGE: Final = 1 << 20
"""Bytes."""


def is_to_spread(ctx: Context) -> bool:
    """Whether the model is to be put into shards, and is not yet."""
    plan = plan_of(ctx)
    wants = plan is not None and plan.shards and ctx.world_size > 1
    return wants and not sharded_modules(ctx.model)


def spread(ctx: Context) -> None:
    """Puts the model into shards, block by block, and gives the optimizer those.

    Every process calls it, inside the process group. All get the first one's values.

    Raises:
        JobError: blocks that are not there, a mesh that does not fit, an optimizer that has a
            state already.
    """
    plan: Any = plan_of(ctx)
    check_optimizer(ctx.optimizer)
    blocks = blocks_of(ctx.model, plan)
    mesh = data_mesh(ctx, plan)
    if is_on_meta(ctx.model):
        check_can_start(ctx.model)
    if ctx.device.type == "cpu":
        give_back_large_blocks()
    for _, block in [*exact_in(ctx.model, blocks, plan), *blocks, ("", ctx.model)]:
        before = dict(block.named_parameters(remove_duplicate=False))
        materialise(block, ctx.device)
        share_over(mesh, _not_yet(block), ctx.device)
        _shard(block, mesh, plan, is_root=block is ctx.model)
        after = dict(block.named_parameters(remove_duplicate=False))
        hand_over(ctx.optimizer, {id(old): (old, after[name]) for name, old in before.items()})
    _settle(ctx, plan)
    if ctx.rank == 0 and not blocks:
        log.warning(
            "parallel: the whole model is gathered at once in every step; name its blocks for "
            "less memory: parallel.blocks = ['Block'], a class or a name of modules"
        )


def exact_in(
    model: nn.Module, blocks: list[tuple[str, nn.Module]], plan: Parallel
) -> list[tuple[str, nn.Module]]:
    """Batch norms that become blocks of their own, where others compute with fewer digits.

    Their statistics are in float32, and torch wants the parameters in the type of those.

    Args:
        model: whole.
        blocks: that there are anyway.
        plan: says the type.
    """
    if plan.param_dtype in (None, "fp32"):
        return []
    known = {id(block) for _, block in blocks}
    norms = ((name, one) for name, one in model.named_modules() if isinstance(one, _NormBase))
    return [(n, m) for n, m in norms if m is not model and m.affine and id(m) not in known]


def _not_yet(block: nn.Module) -> list[torch.Tensor]:
    """Parameters that are in no shard yet, and buffers."""
    inner: set[int] = set()
    for module in sharded_modules(block):
        inner.update(map(id, module.parameters()))
    return [p for p in (*block.parameters(), *block.buffers()) if id(p) not in inner]


def _shard(block: nn.Module, mesh: Any, plan: Parallel, *, is_root: bool) -> None:
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    param, reduce = (
        None if n is None else DTYPES[n] for n in (plan.param_dtype, plan.reduce_dtype)
    )
    output = torch.float32 if is_root and param is not None else None
    precision = MixedPrecisionPolicy(param, reduce, output)
    if isinstance(block, _NormBase):
        precision = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(
        block,
        mesh=mesh,
        reshard_after_forward=plan.reshard_after_forward,
        mp_policy=precision,
        offload_policy=CPUOffloadPolicy() if plan.offload else OffloadPolicy(),
    )


def _settle(ctx: Context, plan: Parallel) -> None:
    """What is set once the whole model is in shards."""
    model: Any = ctx.model
    if plan.find_unused:
        if not hasattr(model, "set_reduce_scatter_unused_params"):
            raise JobError(
                f"parallel: find_unused with mode {plan.mode!r} needs torch 2.13 or later, and "
                f"this is {torch.__version__}; leave it out, or update torch"
            )
        model.set_reduce_scatter_unused_params(True)
    if plan.reduce_dtype is not None:
        # torch looks at the whole parameter of a block that has not been used, and there is none
        for block in sharded_modules(model):
            block.unshard()
            block.reshard()
    atexit.register(_end_group)


def give_back_large_blocks() -> None:
    """Lets the host's memory of a block go back to the system when the block is given up.

    glibc would keep it: what it once gave and got back it gives from its heap the next time, where
    a place of the same size does not fit, for the sake of alignment; so that a process came to take
    all blocks at once (2.5 GB, not 1.1 GB, for 400 MB in two processes). Other C libraries have no
    such setting.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def _end_group() -> None:
    """The group outlives the fits, for the shards are of use only in it; but not the interpreter.

    After an error another process may still wait for this one, and the end of the group for it.
    """
    failed = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if failed is None and distributed.is_initialized():
        distributed.destroy_process_group()
