"""How the processes are arranged, and who of them share their data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from hatbus.errors import JobError

if TYPE_CHECKING:
    from hatbus.loop.context import Context
    from hatbus.parallel.modes.options import Parallel


def check_mesh(plan: Parallel, world: int) -> None:
    """Refuses a mesh for another number of processes.

    Raises:
        JobError: the numbers.
    """
    if plan.mesh is None:
        return
    groups, each = plan.mesh
    if groups * each != world:
        raise JobError(
            f"parallel: mesh is {list(plan.mesh)!r}, for {groups * each} processes, and there are "
            f"{world}; give two numbers whose product is {world}, or start other processes"
        )


def data_mesh(ctx: Context, plan: Parallel) -> Any:
    """The mesh over which parameters are sharded: all processes, or groups of them.

    Raises:
        JobError: a mesh for another number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh

    check_mesh(plan, ctx.world_size)
    kind = ctx.device.type
    if plan.mesh is not None:
        return init_device_mesh(kind, tuple(plan.mesh), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(kind, (ctx.world_size,), mesh_dim_names=("shard",))


@torch.no_grad()
def share_over(mesh: Any, tensors: Iterable[torch.Tensor], device: torch.device) -> None:
    """Gives all processes of a mesh the values of its first one, in place."""
    for one in tensors:
        local: Any = one.detach()
        here = local.to_local() if hasattr(local, "to_local") else local
        sent = here.to(device).contiguous()
        if not sent.numel():
            continue
        for dim in range(mesh.ndim):
            distributed.broadcast(sent, group=mesh.get_group(dim), group_src=0)
        if sent is not here:
            here.copy_(sent)
