"""Modules by dotted name, as in ``model.get_submodule``; wrappers are looked through.

A name stands for that module and everything below it. It is looked up once, at loop begin, and
again when the model's structure has changed (``hatbus.loop.structure``).
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from hatbus.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

_COMPILED: Final = "_orig_mod"
_SHOWN: Final = 3
GIVEN: Final = "model.given"
"""Where the trainer leaves the model that a fit begins with."""


class AllModules(nn.Module):
    """The model and the modules beside it as one, to look things up in: nothing is copied.

    Args:
        model: the model, whose parts have the names that they have in it.
        beside: by name.

    Attributes:
        model_alone, beside: the two.
    """

    model_alone: nn.Module
    beside: Mapping[str, nn.Module]

    def __init__(self, model: nn.Module, beside: Mapping[str, nn.Module]) -> None:
        super().__init__()
        vars(self).update(  # and not by setattr, which would make them parts
            model_alone=model,
            beside=beside,
            _parameters=model._parameters,  # noqa: SLF001 - its own
            _buffers=model._buffers,  # noqa: SLF001 - the same
            _non_persistent_buffers_set=model._non_persistent_buffers_set,  # noqa: SLF001 - the same
            _modules={**model._modules, **beside},  # noqa: SLF001 - the same
        )


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    inner: Any = module
    while True:
        if isinstance(inner, (DataParallel, DistributedDataParallel)):
            inner = inner.module
            continue
        compiled_from = getattr(inner, "_orig_mod", None)
        if compiled_from is None:
            found: torch.nn.Module = inner
            return found
        inner = compiled_from


def find_module(model: torch.nn.Module, name: str, where: str) -> torch.nn.Module:
    """The module of a dotted name; ``""`` is the model itself.

    Args:
        model: the model, wrapped or not; wrapped submodules are looked through as well. With
            ``ctx.all_modules`` also what stands beside it, such as ``"loss"``.
        name: such as ``"backbone.layer1"``; never a mere part of a name.
        where: what the message blames, such as ``"grad_scale: module_and_scale"``.

    Raises:
        JobError: there is no such module; the message says which names come closest.
    """
    module, parts = unwrapped(model), name.split(".") if name else []
    if isinstance(model, AllModules):
        is_beside = bool(parts) and parts[0] in model.beside
        module = model.beside[parts.pop(0)] if is_beside else unwrapped(model.model_alone)
    for part in parts:
        child = _child(module, part)
        if child is None:
            raise JobError(f"{where}: unknown module {name!r}{_closest(name, module_names(model))}")
        module = unwrapped(child)
    return module


def _child(module: torch.nn.Module, name: str) -> torch.nn.Module | None:
    """A child by name; one that has two names is found by both."""
    try:
        return module.get_submodule(name) if name else None
    except AttributeError:
        return None


def check_not_replaced(given: torch.nn.Module, model: torch.nn.Module, called: object) -> None:
    """Refuses a model that was put in the place of the trained one, while the old one is called.

    Args:
        given: the model that the run began with.
        model: ``ctx.model`` now.
        called: ``ctx.wrapped_model`` now.

    Raises:
        JobError: another model would be saved than is trained.
    """
    if model is not given and unwrapped(called) is given:  # type: ignore[arg-type]  # a module
        raise JobError(
            "ctx.model was replaced during the run, but the model from before is the one that is "
            "trained; replace its parts, or give the trainer the new one"
        )


def has_module(model: torch.nn.Module, name: str) -> bool:
    """Whether the model has a module of that dotted name, as ``find_module`` finds it."""
    try:
        find_module(model, name, "")
    except JobError:
        return False
    return True


def module_names(model: torch.nn.Module) -> list[str]:
    """Every dotted name in the model, wrappers left out, in the order of definition."""
    found: list[str] = []
    if isinstance(model, AllModules):
        _collect(unwrapped(model.model_alone), "", found)
        for name, module in model.beside.items():
            found.append(name)
            _collect(module, f"{name}.", found)
    else:
        _collect(unwrapped(model), "", found)
    return found


def plain_name(name: str) -> str:
    """The dotted name of a parameter or buffer without the wrappers that ``torch.compile`` adds.

    ``"backbone._orig_mod.conv.weight"`` is ``"backbone.conv.weight"`` of the model as it was built.
    """
    if _COMPILED not in name:
        return name
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _collect(module: torch.nn.Module, prefix: str, found: list[str]) -> None:
    for name, child in module.named_children():
        found.append(prefix + name)
        _collect(unwrapped(child), f"{prefix}{name}.", found)


def _closest(name: str, known: Iterable[str]) -> str:
    """End of the message: the closest names, else the names at the top of the model."""
    names = list(known)
    close = sorted((n for n in names if name and name in n), key=len)[:_SHOWN]
    close += [n for n in get_close_matches(name, names, n=_SHOWN, cutoff=0.6) if n not in close]
    # "conv1" alone resembles no long dotted name, but may be the last part of one
    last = name.rpartition(".")[2]
    close += [n for n in names if n.rpartition(".")[2] == last and n not in close]
    if close:
        return f"; did you mean {' or '.join(repr(n) for n in close[:_SHOWN])}?"
    top = [n for n in names if "." not in n]
    return f"; known: {', '.join(map(repr, top))}" if top else "; the model has no submodules"
