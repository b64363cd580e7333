"""Imports of hatbus's private names in a plugin's package: they work, until they change."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from hatbus.authoring.import_time import imported_by
from hatbus.authoring.public_names import public_modules, public_names
from hatbus.discovery.class_source import source_of

if TYPE_CHECKING:
    from hatbus.discovery.class_source import Module, Sources

_HATBUS: Final = "hatbus"
_NO_NAME: Final = ""
Import = tuple[str, str, int]
"""Module, name (empty: the module itself) and line."""


def private_imports(sources: Sources, name: str) -> Iterator[str]:
    """Advice on what a module, and those of its package that it imports, take from hatbus.

    Args:
        sources: to read from.
        name: of the module that holds the plugin.
    """
    for module in _with_its_own(sources, name):
        for source, taken, line in _from_hatbus(module):
            if not _is_public(source, taken):
                what = f"{taken} from {source}" if taken else source
                yield (
                    f"{module.file.name} line {line}: imports {what}, which is private and may "
                    f"change; {_instead(source, taken)}"
                )


def _with_its_own(sources: Sources, name: str) -> Iterator[Module]:
    """A module, and the modules of its package that it imports, at whatever time."""
    package = name.partition(".")[0]
    waiting, seen = [name], {name}
    while waiting:
        module = sources.module(waiting.pop())
        if module is None:
            continue
        yield module
        for node in ast.walk(module.tree):
            for other in imported_by(module, node):
                if other.partition(".")[0] == package and other not in seen:
                    seen.add(other)
                    waiting.append(other)


def _from_hatbus(module: Module) -> Iterator[Import]:
    """What a module imports from hatbus, also inside functions and for type checking."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, _NO_NAME) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = source_of(module, node)
            found = [(source, alias.name) for alias in node.names]
        else:
            continue
        for source, name in found:
            if source.partition(".")[0] == _HATBUS:
                yield source, name, node.lineno


def _is_public(source: str, name: str) -> bool:
    """Whether a module, or a name in it, is public."""
    modules = {*public_modules(), f"{_HATBUS}.callbacks"}
    if name in (_NO_NAME, "*"):
        return source in modules
    public = {(one.module, one.name) for one in public_names()}
    is_callback = source == f"{_HATBUS}.callbacks" and not name.startswith("_")
    return is_callback or (source, name) in public or f"{source}.{name}" in modules


def _instead(source: str, name: str) -> str:
    """The public way to a private name, if there is one."""
    same = [one for one in public_names() if one.name == name]
    at_home = [one for one in same if one.home == source] or same
    if at_home:
        return f"write `from {at_home[0].module} import {name}`"
    room = ".".join(source.split(".")[:2])
    offered = [one.name for one in public_names() if one.module == room]
    close = get_close_matches(name, offered, n=1, cutoff=0.7)
    if close:
        return f"`from {room} import {close[0]}` is public"
    return "the reference in hatbus's docs has every public name"
