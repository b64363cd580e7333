"""What ``parallel`` means for a model, before anything of it is moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from hatbus.errors import JobError
from hatbus.parallel.device import placed
from hatbus.parallel.launch import rank_and_world
from hatbus.parallel.modes.blocks import blocks_of
from hatbus.parallel.modes.exchange import plan_of
from hatbus.parallel.modes.materialise import is_on_meta
from hatbus.parallel.modes.meshes import check_mesh
from hatbus.parallel.modes.options import parallel_of
from hatbus.parallel.sharding import sharded_modules

if TYPE_CHECKING:
    import torch

    from hatbus.loop.context import Context
    from hatbus.parallel.modes.options import Parallel


def plan_for(given: Any, model: nn.Module, place: torch.device, world: int) -> Parallel | None:
    """What was given as ``parallel``, checked against the model, the device and the processes.

    Raises:
        JobError: it cannot be used.
    """
    plan = parallel_of(given)
    if world > 1:
        _refuse_tensor_parallel(model)
    if plan is None:
        return None
    if sharded_modules(model):
        raise JobError(
            f"parallel is {plan.mode!r}, and the model is in shards already (fully_shard); leave "
            "parallel out, or give the whole model"
        )
    if plan.shards:
        blocks_of(model, plan)
    if world > 1:
        check_mesh(plan, world)
        _check_device(plan, place)
    return plan


def check_training(ctx: Context) -> None:
    """Refuses to train in one process what is to be in shards; and what a mode cannot do.

    Raises:
        JobError: how to start several, or what to say instead.
    """
    plan = plan_of(ctx)
    several = ctx.data.accumulate > 1 or len(ctx.data.tasks) > 1
    if plan is not None and plan.static_graph and several:
        raise JobError(
            "parallel: static_graph needs one batch per step, and a step has several (accumulate, "
            "or tasks), whose gradients DDP would not exchange together; leave one of them out"
        )
    if plan is not None and plan.shards and ctx.world_size == 1:
        raise JobError(
            f"parallel is {plan.mode!r}, which needs several processes, and this is one; start "
            "them: torchrun --standalone --nproc-per-node 2 -m hatbus run JOB (or your script), or "
            "train in this one by -o run.parallel=ddp, in Python parallel='ddp'"
        )


def whole_or_later(
    plan: Parallel | None, model: nn.Module, place: torch.device, asked: Any
) -> nn.Module:
    """The model on the device; one that is to be in shards is moved then, block by block.

    Args:
        plan: what ``parallel`` says.
        model: the plain one.
        place: the device.
        asked: what ``device`` says.

    Raises:
        JobError: it has no memory yet, and nobody would give it some.
    """
    is_shared = rank_and_world()[1] > 1
    if is_shared and plan is not None and plan.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # torch's
    if is_shared and plan is not None and plan.shards:
        return model
    if is_on_meta(model):
        raise JobError(
            "the model is on the meta device, and has no values; build it on the CPU, or start "
            "several processes with parallel = 'fsdp2', which gives its parts their first values"
        )
    return placed(model, place, asked)


def _refuse_tensor_parallel(model: nn.Module) -> None:
    """Refuses parameters that are split among processes which have to see the same samples.

    Shards of FSDP2 are split in the last dimension of their mesh, and only there.
    """
    is_of_fsdp = bool(sharded_modules(model))
    for name, one in model.named_parameters():
        placements = getattr(one, "placements", ())
        split = [not placement.is_replicate() for placement in placements]
        if split and not (is_of_fsdp and len(split) <= 2 and split[-1] and sum(split) == 1):
            mesh: Any = getattr(one, "device_mesh", None)
            raise JobError(
                f"the model's {name!r} is split over a mesh of {tuple(mesh.shape)} by a plan of "
                "tensor parallelism, whose processes would have to see the same samples, and here "
                "each sees its own; accepted: the whole model with parallel = 'fsdp2', or a model "
                "of fully_shard over all processes"
            )


def _check_device(plan: Parallel, place: torch.device) -> None:
    """Refuses what needs an accelerator."""
    if place.type != "cpu":
        return
    if plan.sync_batchnorm:
        raise JobError(
            "parallel: sync_batchnorm: torch has it for accelerators alone, and the device is "
            "'cpu'; leave it out there"
        )
    if plan.offload:
        raise JobError(
            "parallel: offload keeps on the host what an accelerator computes with, and the "
            "device is 'cpu'; leave it out there"
        )
