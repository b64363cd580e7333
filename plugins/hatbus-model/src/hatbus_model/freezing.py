"""Batch norms and frozen modules: which they are, and keeping them in eval mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from torch import nn


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Every batch norm in a module, itself included: by class, so subclasses and SyncBatchNorm."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def keep_in_eval(modules: Iterable[nn.Module]) -> None:
    """Puts back to eval what was put to train; each module alone, not what is below it."""
    for module in modules:
        if module.training:
            module.training = False


def freeze(module: nn.Module) -> list[str]:
    """Stops a module's parameters: no gradient, so no optimizer touches them any more.

    Returns:
        Names of the parameters that were stopped already.
    """
    stopped = [name for name, p in module.named_parameters() if not p.requires_grad]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer goes on moving a parameter by momentum if it has one
    module.eval()
    return stopped


def unfreeze(module: nn.Module, stopped: Iterable[str]) -> None:
    """Lets a module's parameters move again, but for the ones that did not before."""
    left = set(stopped)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in left)
    module.train()
