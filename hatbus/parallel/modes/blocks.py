"""Which modules of a model are gathered at a time, by class or by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from hatbus.errors import JobError, did_you_mean

if TYPE_CHECKING:
    from hatbus.parallel.modes.options import Parallel

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def blocks_of(model: nn.Module, plan: Parallel) -> list[tuple[str, nn.Module]]:
    """The blocks of a model by name, inner ones first; the model itself is not among them.

    Raises:
        JobError: a word of ``blocks`` names nothing, or what is never called; or two blocks hold
            one parameter.
    """
    wanted = plan.wanted_blocks
    if wanted is None:  # what a Transformers model says of itself
        classes = {type(module).__name__ for module in model.modules()}
        said = getattr(model, "_no_split_modules", None) or ()
        wanted = tuple(one for one in said if one in classes)
    found: dict[str, nn.Module] = {}
    for word in wanted:
        found |= _named(model, word)
    order = [(name, one) for name, one in model.named_modules() if name in found]
    blocks = [(name, one) for name, one in reversed(order) if any(True for _ in one.parameters())]
    _check_ties(model, blocks)
    return blocks


def _named(model: nn.Module, word: str) -> dict[str, nn.Module]:
    """What a class or a name of modules means, where ``*`` is a part of a name."""
    pattern = re.compile(".".join(re.escape(p).replace(r"\*", "[^.]*") for p in word.split(".")))
    inside = {name: module for name, module in model.named_modules() if name}
    found = {
        name: module
        for name, module in inside.items()
        if word in _classes(module) or pattern.fullmatch(name)
    }
    if not found:
        known = {*inside, *(type(module).__name__ for module in inside.values())}
        near = did_you_mean(word, known)
        classes = {type(module).__name__ for module in inside.values()}
        hint = near if "did you mean" in near else did_you_mean(word, classes)
        raise JobError(f"parallel: blocks: the model has no class or module {word!r}{hint}")
    for name, module in found.items():
        if isinstance(module, _CONTAINERS) and type(module).forward is nn.Module.forward:
            raise JobError(
                f"parallel: blocks: {name!r} is a {type(module).__name__}, which is never called "
                f"itself; name what is in it: '{name}.*'"
            )
    return found


def _classes(module: nn.Module) -> tuple[str, str]:
    kind = type(module)
    return kind.__name__, f"{kind.__module__}.{kind.__qualname__}"


def _check_ties(model: nn.Module, blocks: list[tuple[str, nn.Module]]) -> None:
    """Refuses a parameter that is in two blocks, or in a block and beside all of them."""
    names = dict(blocks)
    seen: dict[int, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        heads = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        block = next((head for head in heads if head in names), "")
        first, other = seen.setdefault(id(parameter), (name, block))
        if other != block:
            raise JobError(
                f"parallel: blocks: {first!r} and {name!r} are one parameter, in two blocks "
                f"({other or 'the model'}, {block or 'the model'}); leave the block out that "
                "shares it, or choose blocks of which one has both"
            )
