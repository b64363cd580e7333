"""Models whose parameters are spread over the processes (``fully_shard``, FSDP2).

Between forward and backward FSDP puts whole parameters in the shards' places, and a root module
keeps them after a forward without backward. Whoever looks at parameters outside of that calls
``reshard`` first.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hatbus.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def sharded_modules(model: torch.nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was applied to."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # whoever shards has imported it; it is slow
    kind = getattr(fsdp, "FSDPModule", ())
    return [module for module in model.modules() if isinstance(module, kind)]


def sharded_roots(model: torch.nn.Module) -> list[Any]:
    """Those of ``sharded_modules`` that are in no other."""
    inside: set[int] = set()
    found = []
    for module in sharded_modules(model):  # outer ones come first
        if id(module) not in inside:
            found.append(module)
            inside.update(map(id, module.modules()))
    return found


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the model exchanges its parameters itself, so that DDP may not."""
    return bool(sharded_modules(model)) or any(map(is_shard, model.parameters()))


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one process's part of a whole (torch's ``DTensor``)."""
    return hasattr(tensor, "placements")


def reshard(model: torch.nn.Module) -> None:
    """Puts the shards back in the places of whole parameters."""
    for module in sharded_modules(model):
        module.reshard()


def refuse_sharded(model: torch.nn.Module, who: str, instead: str) -> None:
    """Refuses a sharded model.

    Args:
        model: the model.
        who: what the message blames, such as ``"fuse_bn"``.
        instead: what to do.

    Raises:
        JobError: who cannot use it, and what to do instead.
    """
    if is_sharded(model):
        raise JobError(f"{who} cannot use a sharded model (FSDP2); {instead}")


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A shard's part on this process, in the same memory, which may be empty; others as they are.

    Without the graph. Norms and copies of parts need no exchange between processes.
    """
    part: Any = tensor.detach()
    found: torch.Tensor = part.to_local() if is_shard(tensor) else part
    return found


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a shard, which every process has to ask for; other tensors as they are."""
    gather = getattr(tensor, "full_tensor", None)
    found: torch.Tensor = tensor if gather is None else gather()
    return found


def largest_magnitudes(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The largest magnitude in each dense tensor, 0-d; 0 in one without elements.

    ``torch.linalg.vector_norm`` has no such norm of nothing, and a shard with fewer rows than there
    are processes is nothing on some. Of shards every process has to ask, for the same ones.
    """
    parts = [local_tensor(tensor) for tensor in tensors]
    found = [part.abs().max() if part.numel() else part.new_zeros(()) for part in parts]
    by_mesh: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if is_shard(tensor):
            shard: Any = tensor
            by_mesh.setdefault((shard.device_mesh, found[index].dtype), []).append(index)
    for (mesh, _), indices in by_mesh.items():
        largest = over_mesh([found[index] for index in indices], mesh)
        for index, one in zip(indices, largest, strict=True):
            found[index] = one
    return found


def over_mesh(values: Sequence[torch.Tensor], mesh: Any) -> list[torch.Tensor]:
    """The largest of each value over the processes of a mesh, in one message per dimension."""
    import torch

    row = torch.stack(list(values))
    for dimension in range(mesh.ndim):
        torch.distributed.all_reduce(
            row, torch.distributed.ReduceOp.MAX, group=mesh.get_group(dimension)
        )
    return list(row.unbind())
