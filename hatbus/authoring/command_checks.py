"""What is wrong with a command of a distribution, and what would make it better."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from hatbus.authoring.import_time import early_torch, settings_changed
from hatbus.authoring.private_imports import private_imports
from hatbus.discovery.entry_points import conflict_of
from hatbus.discovery.first_party import COMMANDS, is_first_party
from hatbus.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hatbus.authoring.checking import Offer
    from hatbus.discovery.class_source import Function, Sources
    from hatbus.discovery.commands import Command


def command_problems(offer: Offer, sources: Sources) -> list[str]:
    """What the source of a command has wrong, read without importing it."""
    found = list(_name_problems(offer))
    module, colon, name = (part.strip() for part in offer.value.partition(":"))
    name = name.partition("[")[0].strip()
    if not colon or not name:
        return [*found, f"{offer.value!r} names none; accepted: 'package.module:function'"]
    reading = sources.function(module, name)
    if reading is not None:
        return [*found, *_function_problems(reading[1]), *settings_changed(sources, module)]
    if is_assigned(sources, module, name):  # such as `main = app.main`: the import will tell
        return found
    return [*found, sources.why_unreadable(module) or f"module {module!r} has no function {name!r}"]


def command_advice(offer: Offer, sources: Sources) -> list[str]:
    """Advice on a command; none if its function cannot be read."""
    module, _, name = (part.strip() for part in offer.value.partition(":"))
    reading = sources.function(module, name)
    if reading is None:
        return []
    undocumented = ["has no docstring, whose first line is what `hatbus --help` shows"]
    return [
        *([] if ast.get_docstring(reading[1]) else undocumented),
        *filter(None, [early_torch(sources, module)]),
        *private_imports(sources, module),
    ]


def command_load_problems(command: Command, offers: Sequence[Command]) -> list[str]:
    """What installed distributions, and importing the function, bring up.

    Args:
        command: the command.
        offers: every command of its name.
    """
    conflict = conflict_of(offers)
    if conflict:
        return [conflict]
    try:
        command.function()
    except PluginError as error:
        return [str(error)]
    return []


def is_assigned(sources: Sources, module: str, name: str) -> bool:
    """Whether a module gives a name a value at its top level."""
    home = sources.module(module)
    targets = (
        target
        for node in (home.tree.body if home else ())
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _name_problems(offer: Offer) -> Iterator[str]:
    owner = COMMANDS.get(offer.name)
    if owner is not None and not is_first_party(offer.distribution):
        yield f"the name {offer.name!r} is reserved for {owner}; choose another"
    if not re.fullmatch(r"[a-z][a-z0-9-]*", offer.name):
        yield f"the name {offer.name!r} is awkward to type; write it like 'my-command'"


def _function_problems(function: Function) -> Iterator[str]:
    place = f"line {function.lineno}: {function.name}"
    if isinstance(function, ast.AsyncFunctionDef):
        yield f"{place} is async; a command is a plain call"
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    by_keyword = any(default is None for default in arguments.kw_defaults)
    if required > 1 or by_keyword or not (positional or arguments.vararg):
        yield f"{place} must take one argument, the words that follow the command"
