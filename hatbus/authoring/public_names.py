"""Which names of hatbus are public, read from the source, so that nothing of it is imported.

Public are the names in ``__all__`` of ``hatbus``, of its rooms, and of modules that are no room.
Where a name is at home is what the package's ``__init__`` imports under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_HATBUS: Final = Path(__file__).resolve().parents[1]
_PRIVATE: Final = ("__main__", "trainer")
"""Modules beside the rooms whose names are to be had from ``hatbus`` alone."""


class PublicName(NamedTuple):
    """One public name.

    Attributes:
        module: where it is to be imported from.
        name: what it is called there.
        home: the module that defines it, which may change.
    """

    module: str
    name: str
    home: str


@cache
def public_names() -> tuple[PublicName, ...]:
    """Every public name, those of ``hatbus`` first; a name may be public in a room as well."""
    rooms = sorted(path.parent for path in _HATBUS.glob("*/__init__.py"))
    files = sorted(p for p in _HATBUS.glob("*.py") if p.stem not in (*_PRIVATE, "__init__"))
    found = [*_names_of("hatbus", _HATBUS / "__init__.py")]
    for path in (*rooms, *files):
        source = path / "__init__.py" if path.is_dir() else path
        found += _names_of(f"hatbus.{path.stem}", source)
    return tuple(found)


def public_modules() -> tuple[str, ...]:
    """The modules that public names are imported from."""
    return tuple(dict.fromkeys(one.module for one in public_names()))


def _names_of(module: str, source: Path) -> list[PublicName]:
    tree = ast.parse(source.read_bytes(), str(source))
    homes = {
        alias.asname or alias.name: node.module or module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return [PublicName(module, name, homes.get(name, module)) for name in _listed(tree)]


def _listed(tree: ast.Module) -> list[str]:
    """What ``__all__`` holds."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []
