"""Commands that plugins' distributions bring: listed with no import, looked up when asked for."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING

from hatbus.discovery.allow_list import ALLOW, names_allowed
from hatbus.discovery.first_party import COMMANDS, is_first_party
from hatbus.discovery.listed_commands import listed, source_of
from hatbus.discovery.summaries import quick_summary
from hatbus.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hatbus.discovery.commands import Command
    from hatbus.discovery.listed_commands import Listed


def rows() -> list[tuple[str, str]]:
    """``(name, line)`` of every command that is not hatbus's own, for ``hatbus --help``."""
    by_name = groupby((one for one in listed() if COMMANDS.get(one.name) != "hatbus"), _name)
    return [(name, _line([*offers])) for name, offers in by_name]


def _name(one: Listed) -> str:
    return one.name


def _line(offers: list[Listed]) -> str:
    """What the help says of a command, from its source, or why it cannot be used."""
    names = [one.distribution.replace("_", "-") for one in offers]
    if len(offers) > 1:
        return f"offered by {' and '.join(names)}; uninstall one of them"
    if offers[0].name in COMMANDS and not is_first_party(names[0]):
        return f"offered by {names[0]}; the name is reserved for {COMMANDS[offers[0].name]}"
    if not names_allowed(names[0]):
        return f"of {names[0]}, refused by {ALLOW}"
    return f"{summary(offers[0]).removesuffix('.')} ({names[0]})"


def summary(one: Listed) -> str:
    """The first line of the docstring of a command's function, read from its source."""
    module, _, function = (part.strip() for part in one.value.partition(":"))
    source = source_of(module)
    quick = source and quick_summary(source, function, "def")
    if quick:
        return quick
    from hatbus.discovery.class_source import Sources, first_line

    found = Sources().function(module, function)
    return first_line(found[1]) if found else f"no source for {one.value}"


def warn_of_another(names: Sequence[str]) -> None:
    """Says on stderr that a distribution offers a command named like one of hatbus's own."""
    for name in {one.name for one in listed() if one.name in names}:
        from hatbus.discovery.commands import offers_of
        from hatbus.discovery.entry_points import conflict_of

        print(f"hatbus: warning: {conflict_of(offers_of(name))}", file=sys.stderr)


def find(name: str) -> Command:
    """The command of this name.

    Raises:
        HatbusError: there is none, or more than one, or the name is not theirs to offer.
    """
    from hatbus.discovery.commands import lookup

    return lookup(name)


def run(command: Command, words: Sequence[str]) -> int:
    """Calls a command with the words that follow it.

    Returns:
        The exit code that it returned, 0 for None.

    Raises:
        PluginError: it cannot be loaded, or returned something else.
    """
    code = command.function()(list(words))
    if code is not None and not isinstance(code, int):
        raise PluginError(
            f"{command.phrase} returned {code!r:.80}; accepted: an exit code (a number), or None"
        )
    return code or 0
