"""Finds the source file of a module without importing it, and what is no Python in it."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec


def find_source(module: str) -> Path | None:
    """The file of a module, found without importing it or the packages around it."""
    top, _, inner = module.partition(".")
    spec = _top_spec(top, tuple(sys.path))
    if spec is None:
        return None
    if not inner:
        origin = spec.origin or ""
        return Path(origin) if origin.endswith(".py") else None
    return file_in([Path(place) for place in spec.submodule_search_locations or ()], inner)


@cache
def _top_spec(name: str, path: tuple[str, ...]) -> ModuleSpec | None:  # noqa: ARG001 - the cache's key
    try:
        return find_spec(name)
    except (ImportError, ValueError):
        return None


def file_in(folders: Sequence[Path], module: str) -> Path | None:
    """The file of a module under one of these folders."""
    relative = Path(*module.split("."))
    names = (relative.with_suffix(".py"), relative / "__init__.py")
    return next((f / n for f in folders for n in names if (f / n).is_file()), None)


def said(error: SyntaxError, file: Path) -> str:
    """A syntax error in one line."""
    return f"syntax error in {file} line {error.lineno}: {error.msg}"


def drawn(error: SyntaxError) -> str:
    """The line of a syntax error and a caret below the place, each on a line of its own."""
    text = (error.text or "").rstrip("\n")
    if not text.strip():
        return ""
    shown = text.lstrip()
    place = max((error.offset or 1) - 1 - (len(text) - len(shown)), 0)
    return f"\n    {shown}\n    {' ' * place}^"


def syntax_error(file: Path) -> SyntaxError | None:
    """What is no Python in a file; None where all is."""
    import ast  # which most commands do without

    try:
        ast.parse(file.read_bytes(), str(file))
    except SyntaxError as error:
        return error
    except (OSError, ValueError):
        return None
    return None
