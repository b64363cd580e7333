"""What follows when a model's parameters are replaced: the optimizer, other ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import distributed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Replaced = Mapping["nn.Parameter", Sequence[tuple[str, "nn.Parameter"]]]
"""Old parameter to the (name, new parameter) that take its place, in order; none: it is gone."""


def replace_in_optimizer(optimizer: torch.optim.Optimizer, replaced: Replaced) -> None:
    """Puts new parameters in their predecessors' groups and places.

    Their state (momentum, moments) starts anew: what was gathered are the gradients of other
    quantities. Lists are changed in place, since some optimizers hold them elsewhere as well.
    """
    for group in optimizer.param_groups:
        old, names = list(group["params"]), group.get("param_names")
        new = [replaced.get(p, (("", p),)) for p in old]
        group["params"][:] = [p for found in new for _, p in found]
        if names is not None:
            pairs = zip(names, new, strict=True)
            names[:] = [given or name for name, found in pairs for given, _ in found]
    for parameter in replaced:
        optimizer.state.pop(parameter, None)


def take_from_first_rank(tensors: Iterable[Tensor]) -> None:
    """Gives every rank rank 0's values (buffers differ between ranks until DDP's next forward)."""
    if distributed.is_initialized():
        for tensor in tensors:
            distributed.broadcast(tensor, 0)
