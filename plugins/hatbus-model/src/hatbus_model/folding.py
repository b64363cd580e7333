"""Folding a batch norm into the convolution before it: which pairs, and the arithmetic.

A convolution followed by a batch norm in eval mode is one convolution::

    W' = W * gamma / sqrt(var + eps)      b' = (b - mean) * gamma / sqrt(var + eps) + beta

with one factor per output channel. Source: Jacob et al., Quantization and training of neural
networks for efficient integer-arithmetic-only inference, 2018, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus.loop import Context

_FOLDS: Final = "model.folds"
CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORM_FORWARDS: Final = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


@dataclass(frozen=True, slots=True)
class Fold:
    """One pair that was folded: the names of its modules, and what the arithmetic needs."""

    conv: str
    norm: str
    eps: float
    groups: int
    transposed: bool


def folds_of(ctx: Context) -> list[Fold]:
    """Every fold made in this run, in order; whoever keeps copies of weights follows them."""
    folds: list[Fold] = ctx.storage.setdefault(_FOLDS, [])
    return folds


def folded(
    weight: Tensor, bias: Tensor | None, norm: Mapping[str, Tensor], fold: Fold
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution.

    Args:
        weight: (out, in / groups, ...); (in, out / groups, ...) of a transposed convolution.
        bias: (out,), or None.
        norm: ``running_mean`` and ``running_var``, and ``weight`` and ``bias`` if affine: (out,).
        fold: the pair.
    """
    mean, spread = norm["running_mean"], torch.sqrt(norm["running_var"] + fold.eps)
    factor = norm["weight"] / spread if "weight" in norm else 1.0 / spread
    shift = (bias - mean if bias is not None else -mean) * factor
    if "bias" in norm:
        shift = shift + norm["bias"]
    per_filter = [1] * (weight.dim() - 1)
    if not fold.transposed:
        scaled = weight * factor.reshape(-1, *per_filter)
    else:
        by_group = weight.reshape(fold.groups, -1, *weight.shape[1:])
        scaled = by_group * factor.reshape(fold.groups, 1, -1, *per_filter[1:])
        scaled = scaled.reshape(weight.shape)
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def fold_average(values: dict[str, Tensor], fold: Fold) -> None:
    """Folds averaged weights as the weights themselves were folded; in place of what is there."""
    name = f"{fold.conv}.weight" if fold.conv else "weight"
    if name not in values:
        return
    prefix = f"{fold.norm}."
    norm = {n.removeprefix(prefix): values.pop(n) for n in list(values) if n.startswith(prefix)}
    weight, bias = folded(values[name], values.get(f"{fold.conv}.bias"), norm, fold)
    values[name], values[f"{fold.conv}.bias"] = weight, bias


def why_not(conv: nn.Module, norm: _BatchNorm) -> str | None:
    """Why this pair cannot be folded, or None if it can."""
    if type(conv) not in (*CONVOLUTIONS, *TRANSPOSED):
        return f"it follows a {type(conv).__name__}, not a plain convolution"
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics"
    channels = conv.out_channels
    if norm.num_features != channels:
        return f"it has {norm.num_features} channels, the convolution {channels}"
    for module in (conv, norm):
        if _does_more(module):
            return f"the {type(module).__name__} has forward hooks or a forward of its own"
    return None


def _does_more(module: nn.Module) -> bool:
    """Whether a convolution or batch norm does more than torch's own of its kind."""
    if isinstance(module, _BatchNorm) and type(module).forward not in _NORM_FORWARDS:
        return True
    hooked = module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001 - torch has no other way
    return bool(hooked) or "forward" in vars(module)


def folded_pair(conv: nn.Module, norm: _BatchNorm, fold: Fold) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution module and the batch norm behind it."""
    parts = ("weight", "bias", "running_mean", "running_var")
    held = {n: getattr(norm, n) for n in parts if getattr(norm, n) is not None}
    weight, bias = conv.weight, conv.bias
    with torch.no_grad():
        return folded(weight, bias, held, fold)  # type: ignore[arg-type]  # a convolution has tensors
