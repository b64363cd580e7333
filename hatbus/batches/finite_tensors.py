"""Finds tensors that hold a NaN or an infinity, by one quick sum of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_EXACT = 4
"""Bytes: sums of fewer are made in float32, where large finite numbers do not overflow."""
_ALWAYS_FINITE = (getattr(torch, "float4_e2m1fn_x2", None),)
"""Types that have neither NaN nor infinity, and with which torch does not reckon."""


def not_finite(named: Iterable[tuple[str, Tensor]], *, nan_only: bool = False) -> Iterator[str]:
    """The tensors that hold a NaN or an infinity, in words: ``'weight' (3 of 8 entries are nan)``.

    A NaN or an infinity makes a sum one, so only tensors whose sum is not finite are looked at
    entry by entry. That reads all once, as quickly as memory can, and waits once for the device.

    Args:
        named: names and tensors; those without data or of whole numbers are passed over.
        nan_only: infinities are right.
    """
    found = [(name, one) for name, each in named if (one := _floats_of(each)) is not None]
    if not found:
        return
    device = found[0][1].device
    sums = torch.stack([_sum_of(one).to(device, torch.complex64) for _, one in found])
    for (name, one), is_fine in zip(found, torch.isfinite(sums).tolist(), strict=True):
        bad = 0 if is_fine else int((one.isnan() if nan_only else ~one.isfinite()).sum())
        if bad:
            kinds = ["nan"] * bool(one.isnan().any()) + ["inf"] * bool(one.isinf().any())
            yield f"{name!r} ({bad} of {one.numel()} entries are {' or '.join(kinds)})"


def _floats_of(tensor: Any) -> Tensor | None:
    """What a tensor stores, detached; None where there is nothing that could be bad."""
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return None
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    local = tensor.detach()
    if hasattr(local, "to_local"):  # this process's shard
        local = local.to_local()
    if local.layout is torch.sparse_coo:
        local = local.coalesce().values()
    if local.dtype in _ALWAYS_FINITE or local.layout is not torch.strided or not local.numel():
        return None
    found: Tensor = local.float() if local.element_size() == 1 else local
    return found


def _sum_of(tensor: Tensor) -> Tensor:
    if tensor.element_size() < _LEAST_EXACT:
        return tensor.sum(dtype=torch.float32)
    return tensor.sum()
