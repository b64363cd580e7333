"""torch's eager mode quantisation, called without its notices.

torch 2.13 still ships ``torch.ao.quantization`` and marks it deprecated, "to be removed in 2.10".
It keeps the names of a model's modules and parameters, on which freezing, averages, gradient scales
and checkpoints go. What torch names as its follower, ``torchao``'s pt2e, works on an exported
graph, in which there are no modules to name; it is the mode ``"pt2e"`` here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hatbus.errors import JobError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

OWN_SWITCHES = ("fake_quant_enabled", "observer_enabled")
"""Buffers that say what a stage does, not what it has learned."""


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's notices that its eager quantisation is deprecated; see the module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.ao.quantization is deprecated.*")
        warnings.filterwarnings("ignore", message=".*reduce_range will be deprecated.*")
        warnings.filterwarnings("ignore", message=".*must run observer.*")
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
        yield


def check_backend(where: str, backend: str) -> None:
    """Refuses a backend that this torch does not have.

    Raises:
        JobError: it has not.
    """
    known = [one for one in torch.backends.quantized.supported_engines if one != "none"]
    if backend not in known:
        raise JobError(f"{where}: unknown backend {backend!r}{did_you_mean(backend, known)}")


def fake_quants(model: nn.Module) -> list[nn.Module]:
    """Every module that imitates quantisation; none in a float model."""
    from torch.ao.quantization import FakeQuantizeBase

    return [one for one in model.modules() if isinstance(one, FakeQuantizeBase)]


def is_quantised(model: nn.Module) -> bool:
    """Whether a model has modules that calculate in whole numbers."""
    names = (type(one).__module__ for one in model.modules())
    return any(
        name.startswith("torch.ao.nn") and ".quantized" in name and ".qat" not in name
        for name in names
    )


def fused(model: nn.Module, groups: list[list[str]], *, folds: bool) -> nn.Module:
    """The model with groups of modules fused, in place.

    Args:
        model: a float model; its mode is afterwards as before.
        groups: names of modules that follow one another.
        folds: fold batch norms into the weights; else they stay, and train, in the fused module.
    """
    from torch.ao.quantization import fuse_modules, fuse_modules_qat

    if not groups:
        return model
    training = model.training
    fuse: Callable[..., nn.Module] = fuse_modules if folds else fuse_modules_qat
    with quietly():
        fuse(model.train(not folds), groups, inplace=True)
    return model.train(training)


def prepared(model: nn.Module, backend: str) -> nn.Module:
    """The model with fake quantisation, in place; in training mode."""
    tool: Any = torch.ao.quantization  # without types
    model.qconfig = tool.get_default_qat_qconfig(backend)
    with quietly():
        made: nn.Module = tool.prepare_qat(model.train(), inplace=True)
    return made


def converted(model: nn.Module, backend: str) -> nn.Module:
    """The quantised model, on the CPU; what it is made of may not be used any more."""
    tool: Any = torch.ao.quantization  # without types
    before: Any = torch.backends.quantized.engine
    with quietly():
        try:
            torch.backends.quantized.engine = backend
            made: nn.Module = tool.convert(model.eval().cpu(), inplace=True)
        finally:
            torch.backends.quantized.engine = before
    return made
