"""Plugin classes in a file of one's own, ``FILE.py:Class``, read without importing it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final, NamedTuple

from hatbus.discovery.class_source import ClassSource, Sources
from hatbus.discovery.module_files import drawn, said
from hatbus.errors import PluginError, did_you_mean

_FILE: Final = re.compile(r"(?P<file>.+\.py)(:(?P<cls>[A-Za-z_][\w.]*))?")


class OwnFile(NamedTuple):
    """A file, and a class in it where one was named.

    Attributes:
        file: as it was given.
        cls: the class; empty for all of the file.
    """

    file: Path
    cls: str

    @property
    def sources(self) -> Sources:
        """The sources of its folder, to read classes from."""
        return Sources([self.file.parent])

    def classes(self) -> dict[str, ClassSource]:
        """The class that was named, or every class of the file that is a plugin, by name.

        Raises:
            PluginError: there is none, or the file cannot be read.
        """
        tree, sources = parsed(self.file), self.sources
        known = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        chosen = [self.cls] if self.cls else known
        read = {name: sources.read(self.file.stem, name) for name in chosen}
        found = {name: source for name, source in read.items() if source is not None}
        if self.cls and not found:
            hint = did_you_mean(self.cls, known)
            raise PluginError(f"{self.file} has no class {self.cls!r}{hint}")
        if not self.cls:
            found = {name: source for name, source in found.items() if is_plugin(source)}
        if not found:
            raise PluginError(
                f"{self.file} holds no plugin: no class in it has @hookimpl above a method, or is "
                "a CallbackMixin"
            )
        return found


def own_file(text: str) -> OwnFile | None:
    """What ``"FILE.py"`` or ``"FILE.py:Class"`` names; None for any other word."""
    found = _FILE.fullmatch(text)
    return OwnFile(Path(found["file"]), found["cls"] or "") if found else None


def is_plugin(source: ClassSource) -> bool:
    """Whether a class is meant to be a plugin."""
    return bool(source.events or source.is_declared or source.is_mixin)


def parsed(file: Path) -> ast.Module:
    """A file's source.

    Raises:
        PluginError: it is not there, cannot be read, or is no Python; then with line and caret.
    """
    try:
        return ast.parse(file.read_bytes(), str(file))
    except FileNotFoundError as error:
        there = [one.name for one in file.parent.glob("*.py")] if file.parent.is_dir() else []
        hint = did_you_mean(file.name, there)
        hint = hint if "did you mean" in hint else ""
        raise PluginError(f"no file {str(file)!r}{hint}") from error
    except SyntaxError as error:
        raise PluginError(f"{said(error, file)}{drawn(error)}") from error
    except (OSError, ValueError) as error:
        raise PluginError(f"{str(file)!r} cannot be read: {error}") from error
