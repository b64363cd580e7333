"""The modules beside a run's model: a loss with weights of its own, a critic, and their like.

The optimizer may train them, so they are moved, saved, resumed and shared as the model is. They are
found where a loss or batch processor holds them, or named: ``Trainer(modules={"critic": x})``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from hatbus.errors import JobError
from hatbus.log import log
from hatbus.loop.module_names import unwrapped

if TYPE_CHECKING:
    import torch

_DEEP: Final = 3
"""Objects, functions and containers on the way from a loss to a module; most have none."""
_LONG: Final = 100
"""Entries of a list; a longer one holds data."""
_NOT_LOOKED_INTO: Final = ("torch", "builtins", "hatbus", "numpy")
ACCEPTED: Final = "accepted: {name: torch.nn.Module}, the names without dots"


class Beside(nn.Module):
    """Modules by name as one; what is a tensor of the model too is left to the model.

    Args:
        modules: by name.
        model: the model.
    """

    of_model: set[str]

    def __init__(self, modules: Mapping[str, nn.Module], model: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_modules", dict(modules))
        mine = {id(one) for one in model.state_dict(keep_vars=True).values()}
        whole = super().state_dict(keep_vars=True)
        object.__setattr__(self, "of_model", {n for n, one in whole.items() if id(one) in mine})

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The modules' own tensors by name."""
        found = super().state_dict(*args, **options)
        return {name: one for name, one in found.items() if name not in self.of_model}


def modules_beside(
    model: nn.Module,
    processor: object,
    optimizer: torch.optim.Optimizer | None,
    named: Mapping[str, nn.Module] | None = None,
) -> dict[str, nn.Module]:
    """The modules beside a model, by name: those that were named, then those that are found.

    Args:
        model: the model; what is a part of it is not beside it.
        processor: the batch processor; its loss is ``"loss"``, of a task ``"loss_<task>"``.
        optimizer: what it trains is found also where a function has a global name for it.
        named: what the user calls so.

    Raises:
        JobError: a name or module that cannot be one.
    """
    found = dict(check_named(named, model))
    groups = [] if optimizer is None else optimizer.param_groups
    trained = {id(one) for group in groups for one in group["params"]}
    for name, module in modules_in(processor, trained):
        inside = (*model.modules(), *(part for one in found.values() for part in one.modules()))
        if not any(module is part for part in inside):
            found[_free(name, {*found, *model._modules})] = module  # noqa: SLF001 - names of its children
    return found


def check_named(named: Any, model: nn.Module) -> Mapping[str, nn.Module]:
    """The modules that a user names beside the model.

    Raises:
        JobError: what cannot be one, and what is accepted.
    """
    if named is None:
        return {}
    if not isinstance(named, Mapping):
        raise JobError(f"modules is {named!r:.80}; {ACCEPTED}")
    for name, module in named.items():
        if not isinstance(module, nn.Module):
            what = f"the class {module.__name__}" if isinstance(module, type) else f"{module!r:.80}"
            raise JobError(f"modules: {name!r} is {what}; {ACCEPTED}")
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise JobError(f"modules: {name!r} is no name; {ACCEPTED}")
        if name in model._modules:  # noqa: SLF001 - names of its children
            raise JobError(f"modules: {name!r} is the name of a part of the model; choose another")
        if any(module is part for part in model.modules()):
            raise JobError(f"modules: {name!r} is a part of the model already; leave it out")
    return {name: unwrapped(module) for name, module in named.items()}


def modules_in(processor: object, trained: Iterable[int] = ()) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a batch processor, its loss or a function of it holds, with a name for each.

    Args:
        processor: the batch processor.
        trained: ids of parameters; a module with one of them is found as a function's global too.
    """
    known = frozenset(trained)
    for name, value in getattr(processor, "__dict__", {}).items():
        if not name.startswith("_asked"):  # the model that it looked at last
            yield from _inside(value, name, known, _DEEP)


def warn_of_strangers(optimizer: torch.optim.Optimizer, modules: nn.Module) -> None:
    """Says which parameters the optimizer trains that nobody else will know of."""
    known = {id(one) for one in modules.parameters()}
    groups = optimizer.param_groups
    strangers = [one for group in groups for one in group["params"] if id(one) not in known]
    if strangers:
        shapes = ", ".join(str(tuple(one.shape)) for one in strangers[:3])
        log.warning(
            "the optimizer trains %d parameters (of shape %s%s) that are neither the model's nor "
            "its loss's: no checkpoint holds them, and they are not moved or shared; name their "
            "module, Trainer(modules={'critic': net}), or in a job return it under 'modules'",
            len(strangers),
            shapes,
            ", ..." if len(strangers) > 3 else "",
        )


def _inside(
    value: Any, name: str, trained: frozenset[int], deep: int
) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are reached from a value, without looking into modules."""
    if isinstance(value, nn.Module):
        yield name, unwrapped(value)
    elif deep:
        for more, one in _parts(value, trained):
            inner = f"{name}_{more}" if more else name
            yield from _inside(one, inner, trained, deep - 1)


def _parts(value: Any, trained: frozenset[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), one) for key, one in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(number), one) for number, one in enumerate(value[:_LONG]))
    elif isinstance(value, partial):
        yield from (("", value.func), ("", value.args), ("", value.keywords))
    elif inspect.ismethod(value):
        yield from (("", value.__self__), ("", value.__func__))
    elif inspect.isfunction(value):
        yield from _of_function(value, trained)
    elif type(value).__module__.partition(".")[0] not in _NOT_LOOKED_INTO:
        yield from list(getattr(value, "__dict__", {}).items())


def _of_function(function: Any, trained: frozenset[int]) -> Iterator[tuple[str, Any]]:
    """What a function encloses, and has as attributes; of its globals what is trained."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue
    yield from vars(function).items()
    for name in code.co_names:
        found = function.__globals__.get(name)
        if isinstance(found, nn.Module) and any(id(p) in trained for p in found.parameters()):
            yield name, found


def _free(name: str, taken: set[str]) -> str:
    """The name, if no other module has it; else with a number."""
    plain = re.sub(r"\W", "_", name)
    numbers = (f"{plain}_{n}" if n > 1 else plain for n in range(1, len(taken) + 2))
    return next(one for one in numbers if one not in taken)
