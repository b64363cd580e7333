"""Batch norms and frozen modules: which they are, and keeping them in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from hatbus.loop import find_module, has_module

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


def parts(module: nn.Module, *, only_batchnorm: bool) -> dict[str, nn.Module]:
    """What a freeze keeps in eval mode, by name in the module: all in it, or its batch norms."""
    named = module.named_modules()
    return {n: m for n, m in named if not only_batchnorm or isinstance(m, _BatchNorm)}


def held(
    model: nn.Module, freezes: Iterable[Mapping[str, Iterable[str]]]
) -> dict[nn.Parameter, bool]:
    """The parameters that are frozen, each with whether it trained before.

    Args:
        model: the raw model.
        freezes: names of frozen modules, to the names in them of parameters that did not train.
    """
    found: dict[nn.Parameter, bool] = {}
    for name, stopped in ((n, set(s)) for frozen in freezes for n, s in frozen.items()):
        if has_module(model, name):
            module = find_module(model, name, "freeze_module: modules")
            found.update({p: n not in stopped for n, p in module.named_parameters()})
    return found


def modes_held(
    model: nn.Module, freezes: Iterable[tuple[bool, Mapping[str, Iterable[str]]]]
) -> dict[nn.Module, bool]:
    """The modules that are kept in eval mode, each with whether it was in train mode before.

    Args:
        model: the raw model.
        freezes: whether only batch norms are frozen; and names of frozen modules, to the names in
            them of modules that were in eval mode.
    """
    found: dict[nn.Module, bool] = {}
    for only, in_eval in freezes:
        for name, before in ((n, set(s)) for n, s in in_eval.items()):
            if has_module(model, name):
                module = find_module(model, name, "freeze_module: modules")
                inside = parts(module, only_batchnorm=only)
                found.update({m: n not in before for n, m in inside.items()})
    return found


def freeze(module: nn.Module, others: Mapping[nn.Parameter, bool]) -> list[str]:
    """Stops a module's parameters: no gradient, so no optimizer touches them any more.

    Args:
        module: what to stop.
        others: what is frozen by other names, as ``held`` gives it.

    Returns:
        Names of the parameters that did not train before anything froze them.
    """
    stopped = [n for n, p in module.named_parameters() if not others.get(p, p.requires_grad)]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer goes on moving a parameter by momentum if it has one
    return stopped


def unfreeze(
    module: nn.Module, stopped: Iterable[str], others: Mapping[nn.Parameter, bool]
) -> None:
    """Lets a module's parameters move again.

    Args:
        module: what to let go.
        stopped: names of the parameters that did not train before, and do not now.
        others: what is frozen by other names and stays so, as ``held`` gives it.
    """
    left = set(stopped)
    for name, parameter in module.named_parameters():
        if parameter not in others:
            parameter.requires_grad_(name not in left)


def to_eval(inside: Mapping[str, nn.Module], others: Mapping[nn.Module, bool]) -> list[str]:
    """Puts modules to eval mode.

    Args:
        inside: the modules by name, as ``parts`` gives them.
        others: what is in eval mode by other names, as ``modes_held`` gives it.

    Returns:
        Names of the modules that were in eval mode before anything froze them.
    """
    before = [n for n, m in inside.items() if not others.get(m, m.training)]
    keep_in_eval(inside.values())
    return before


def to_train(
    inside: Mapping[str, nn.Module], before: Iterable[str], others: Mapping[nn.Module, bool]
) -> None:
    """Puts modules back to the modes that they had.

    Args:
        inside: the modules by name, as ``parts`` gives them.
        before: names of those that were in eval mode, and stay so.
        others: what is in eval mode by other names and stays so, as ``modes_held`` gives it.
    """
    for module in [inside[""]] if "" in inside else inside.values():
        module.train()  # a module's own may leave something in eval mode
    names = set(before)
    keep_in_eval(m for n, m in inside.items() if n in names or m in others)
