"""The commands that installed distributions bring, listed without importing any of them.

``hatbus --help`` shows them and has to be quick, so ``entry_points.txt`` is read here: importing
``importlib.metadata`` alone takes as long as the whole of that help, and ``pathlib`` a tenth of it.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from hatbus.discovery.first_party import normalized

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND_GROUP: Final = "hatbus.commands"
"""The entry-point group in which a distribution offers its commands."""
_INFO: Final = (".dist-info", ".egg-info")
_LINE: Final = re.compile(r"^[ \t]*([^#;\s=][^=\n]*?)[ \t]*=[ \t]*(.*?)[ \t]*$", re.MULTILINE)


class Listed(NamedTuple):
    """One command as its distribution's metadata name it.

    Attributes:
        name: of the command.
        value: ``"package.module:function"``.
        distribution: its name, as the metadata's folder has it.
        info: the folder of the metadata.
    """

    name: str
    value: str
    distribution: str
    info: str


def listed() -> list[Listed]:
    """Every command of an installed distribution, by name."""
    found: dict[str, list[Listed]] = {}
    for place in sys.path:
        for name, info in _metadata_in(place or os.curdir):
            key = normalized(name)
            if key not in found:  # else Python imports the other one
                found[key] = [Listed(*entry, name, info) for entry in _entries(info)]
    return sorted(one for commands in found.values() for one in commands)


def _metadata_in(place: str) -> Iterator[tuple[str, str]]:
    """Name of a distribution and the folder of its metadata, of each in a folder."""
    try:
        with os.scandir(place) as entries:
            found = [(entry.name, entry.path) for entry in entries if entry.name.endswith(_INFO)]
    except OSError:  # a zip file, or nothing
        return
    for name, path in found:
        yield name.rpartition(".")[0].partition("-")[0], path


def _entries(info: str) -> Iterator[tuple[str, str]]:
    """``(name, value)`` of each command in one distribution's ``entry_points.txt``."""
    section = (text_of(f"{info}/entry_points.txt") or "").partition(f"[{COMMAND_GROUP}]")[2]
    yield from _LINE.findall(section.partition("\n[")[0])


def source_of(module: str) -> str | None:
    """The source of a module that lies in a folder of ``sys.path``; None if none does."""
    path = module.replace(".", "/")
    places = (f"{place or os.curdir}/{path}" for place in sys.path)
    files = (f"{place}{rest}" for place in places for rest in (".py", "/__init__.py"))
    return next((text for text in map(text_of, files) if text is not None), None)


def text_of(file: str) -> str | None:
    """What a file holds; None where it cannot be read."""
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:  # noqa: PTH123 - see above
            return opened.read()
    except (OSError, ValueError):
        return None
