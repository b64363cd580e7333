"""A copy of a model on the CPU in eval mode, made without touching the model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hatbus.errors import SaveError
from hatbus.loop import unwrapped

if TYPE_CHECKING:
    from torch import Tensor


def eval_copy(model: nn.Module) -> nn.Module:
    """The model's copy: on the CPU, in eval mode, without gradients.

    Wrappers of ``torch.compile`` and DDP are left out. No tensor is copied twice, and none on an
    accelerator: the copier is told beforehand what each tensor is in the copy. Tied tensors stay
    tied.

    Raises:
        SaveError: the model holds something that cannot be copied.
    """
    known: dict[int, Any] = {}
    for parameter in model.parameters():
        value = _on_cpu(parameter)
        known[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    known.update({id(buffer): _on_cpu(buffer) for buffer in model.buffers()})
    try:
        copied = copy.deepcopy(unwrapped(model), known)
    except (RuntimeError, TypeError) as error:
        raise SaveError(
            f"save_traced: the model cannot be copied ({error}); does a module keep an output of "
            "its forward, an open file or a lock as an attribute?"
        ) from error
    for module in list(copied.modules()):  # parts that were compiled on their own
        for name, child in module.named_children():
            if unwrapped(child) is not child:
                setattr(module, name, unwrapped(child))
    return copied.eval()


def on_cpu(value: Any) -> Any:
    """The same nesting of tuples, lists and dicts with copies of its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return _on_cpu(value)
    if isinstance(value, dict):
        return {name: on_cpu(v) for name, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(on_cpu, value))
    return type(value)(map(on_cpu, value)) if isinstance(value, (tuple, list)) else value


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
