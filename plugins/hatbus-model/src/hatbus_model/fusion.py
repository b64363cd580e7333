"""Finding the batch norms to fold in a module, and replacing the modules."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from hatbus.log import log
from hatbus.loop import find_module
from hatbus_model.folding import TRANSPOSED, Fold, folded_pair, why_not
from hatbus_model.freezing import batch_norms
from hatbus_model.surgery import replace_in_optimizer, take_from_first_rank

if TYPE_CHECKING:
    import torch

ALONE: Final = "no convolution directly before it inside a Sequential or ModuleList"


@dataclass(slots=True)
class Fusion:
    """What was done to a model.

    Attributes:
        folds: the pairs that were folded.
        left: name of each batch norm left in place, to the reason.
        replaced: old parameter to the (name, new parameter) in its place.
    """

    folds: list[Fold] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    replaced: dict[nn.Parameter, list[tuple[str, nn.Parameter]]] = field(default_factory=dict)


def candidates(model: nn.Module, name: str) -> tuple[list[Fold], dict[str, str]]:
    """The pairs to fold in a module, and the batch norms to leave with the reason.

    Args:
        model: the raw model.
        name: of the module.

    Raises:
        JobError: there is no such module.
    """
    target = find_module(model, name, "fuse_bn: modules")
    names = {id(module): found for found, module in model.named_modules()}
    holders = Counter(id(child) for m in model.modules() for _, child in m.named_children())
    holders.update(id(c) for m in model.modules() for c in _more_than_once(m))
    own = (m.named_parameters(recurse=False, remove_duplicate=False) for m in model.modules())
    tied = Counter(id(p) for parameters in own for _, p in parameters)
    before: dict[int, Any] = {}
    for container in target.modules():
        if isinstance(container, (nn.Sequential, nn.ModuleList)):
            before.update({id(norm): conv for conv, norm in pairwise(container)})
    folds, left = [], {}
    for norm in batch_norms(target):
        conv: Any = before.get(id(norm))
        reason = ALONE if conv is None else why_not(conv, norm)  # type: ignore[arg-type]  # batch norms
        if reason is None and max(holders[id(conv)], holders[id(norm)]) > 1:
            reason = "it or its convolution stands in more than one place"
        if reason is None and max(tied[id(p)] for m in (conv, norm) for p in m.parameters()) > 1:
            reason = "it or its convolution shares parameters with another module"
        if reason is None:
            folds.append(_fold(names[id(conv)], names[id(norm)], conv, norm))
        else:
            left[names[id(norm)]] = reason
    return folds, left


def fuse(
    model: nn.Module,
    name: str,
    look: Callable[[Sequence[Fold]], Mapping[str, str]],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    inplace: bool = False,
) -> Fusion:
    """Folds every pair of a module that may be folded.

    Args:
        model: the raw model.
        name: of the module.
        look: gives the reasons against pairs, by the norm's name, from how they are called.
        optimizer: made to follow, if given.
        inplace: write into the convolutions' own tensors.

    Raises:
        JobError: there is no such module.
    """
    folds, left = candidates(model, name)
    against = look(folds) if folds else {}
    fusion = Fusion([fold for fold in folds if fold.norm not in against], {**left, **against})
    for fold in fusion.folds:
        fusion.replaced.update(apply_fold(model, fold, optimizer, inplace=inplace))
    if optimizer is not None:
        replace_in_optimizer(optimizer, fusion.replaced)
    return fusion


def report(name: str, fusion: Fusion, *, goes_on: bool = False) -> None:
    """Says what was folded and what was left.

    Args:
        name: of the module; "" for the model.
        fusion: what was done.
        goes_on: whether more of it waits for another task.
    """
    where = repr(name) if name else "the model"
    log.info("fuse_bn: %d batch norms folded in %s", len(fusion.folds), where)
    if fusion.left:
        named = "; ".join(f"{n!r}: {reason}" for n, reason in fusion.left.items())
        log.warning("fuse_bn: left in place in %s: %s", where, named)
    if not fusion.folds and not fusion.left and not goes_on:
        log.warning("fuse_bn: there is no batch norm in %s", where)


def _more_than_once(module: nn.Module) -> list[nn.Module]:
    """The children that a container holds a second time; ``named_children`` leaves them out."""
    if not isinstance(module, (nn.Sequential, nn.ModuleList)):
        return []
    counts = Counter(id(child) for child in module)
    return [child for child in module.children() if counts[id(child)] > 1]


def _fold(conv_name: str, norm_name: str, conv: Any, norm: Any) -> Fold:
    return Fold(conv_name, norm_name, norm.eps, conv.groups, isinstance(conv, TRANSPOSED))


def apply_fold(
    model: nn.Module,
    fold: Fold,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    inplace: bool = False,
) -> dict[nn.Parameter, list[tuple[str, nn.Parameter]]]:
    """Folds one pair: the convolution takes it all in, an ``nn.Identity`` keeps the place.

    Args:
        model: the raw model.
        fold: the pair.
        optimizer: decides in whose place a new bias goes.
        inplace: write into the convolution's own tensors instead of making a new module.

    Returns:
        Old parameter to the new ones in its place.
    """
    conv: Any = model.get_submodule(fold.conv)
    norm: Any = model.get_submodule(fold.norm)
    take_from_first_rank([norm.running_mean, norm.running_var])
    weight, bias = folded_pair(conv, norm, fold)
    biases = [p for p in (conv.bias, norm.bias) if p is not None]
    bias_moves = any(p.requires_grad for p in biases or [conv.weight])
    new = conv if inplace else copy.deepcopy(conv)
    old_weight, old_bias = conv.weight, conv.bias
    new.weight = _parameter(weight, old_weight, old_weight.requires_grad, inplace=inplace)
    new.bias = _parameter(bias, old_bias, bias_moves, inplace=inplace)
    placeholder = nn.Identity()
    placeholder.training = norm.training
    _put(model, fold.conv, new)
    _put(model, fold.norm, placeholder)
    replaced = {old_weight: [(f"{fold.conv}.weight", new.weight)]}
    replaced.update({p: [] for p in (*biases, norm.weight) if p is not None})
    place = next((p for p in biases if _holds(optimizer, p)), old_weight)
    replaced[place] = [*replaced[place], (f"{fold.conv}.bias", new.bias)]
    return replaced


def _parameter(
    value: torch.Tensor, old: nn.Parameter | None, moves: bool, *, inplace: bool
) -> nn.Parameter:
    if not inplace or old is None:
        return nn.Parameter(value, requires_grad=moves)
    old.data.copy_(value)
    old.grad = None
    old.requires_grad_(moves)
    return old


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, module)


def _holds(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter) -> bool:
    groups = optimizer.param_groups if optimizer is not None else ()
    return any(p is parameter for group in groups for p in group["params"])
