"""One command of an installed distribution, looked up when it is asked for."""

from __future__ import annotations

import inspect
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hatbus.discovery.entry_points import Found, conflict_of
from hatbus.discovery.first_party import COMMANDS
from hatbus.discovery.listed_commands import COMMAND_GROUP, listed
from hatbus.errors import JobError, PluginError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hatbus.discovery.listed_commands import Listed

_FUNCTION: Final = re.compile(r"[\w.]+\s*:\s*[\w.]+\s*(\[.*\])?")


class Command(Found):
    """One installed command: an entry point and the distribution that offers it."""

    __slots__ = ()
    kind: ClassVar[str] = "command"

    @property
    def owner(self) -> str:
        """The distribution of hatbus that its name is reserved for; empty if it is free."""
        return COMMANDS.get(self.name, "")

    def function(self) -> Callable[[Sequence[str]], object]:
        """Imports the function.

        Raises:
            PluginError: ``HATBUS_ALLOW`` refuses its distribution, it needs another hatbus,
                importing it failed, or it is no function of one argument.
        """
        accepted = "accepted: a function of one argument, the words that follow the command"
        if not _FUNCTION.fullmatch(self.value):
            raise PluginError(
                f"{self.phrase}: {self.value!r} names none; accepted: 'package.module:function'"
            )
        loaded: Any = self._imported()
        if not callable(loaded) or isinstance(loaded, type):
            kind = "class" if isinstance(loaded, type) else type(loaded).__name__
            raise PluginError(f"{self.phrase}: {self.value!r} is a {kind}; {accepted}")
        try:
            inspect.signature(loaded).bind([])
        except TypeError as error:
            raise PluginError(
                f"{self.phrase}: {self.value!r} cannot be called ({error}); {accepted}"
            ) from error
        function: Callable[[Sequence[str]], object] = loaded
        return function


def command_of(one: Listed) -> Command:
    """A listed command with what its distribution's metadata say.

    Raises:
        PluginError: they cannot be read.
    """
    try:
        found = metadata.Distribution.at(Path(one.info))
        entry = next(
            e for e in found.entry_points if (e.group, e.name) == (COMMAND_GROUP, one.name)
        )
        about: Any = found.metadata
        return Command(entry, str(about["Name"] or one.distribution), str(about["Version"]))
    except Exception as error:
        raise PluginError(
            f"command {one.name!r} of {one.distribution}: {one.info!r} cannot be read: "
            f"{type(error).__name__}: {error}; install {one.distribution} again"
        ) from error


def offers_of(name: str) -> list[Command]:
    """Every command of this name that is installed; not those of hatbus itself."""
    return [command_of(one) for one in listed() if one.name == name]


def lookup(name: str) -> Command:
    """The installed command of this name.

    Raises:
        JobError: there is none.
        PluginError: there is more than one, or the name is not theirs to offer.
    """
    offers = offers_of(name)
    if not offers:
        raise JobError(f"unknown command {name!r}{_hint(name)}")
    conflict = conflict_of(offers)
    if conflict:
        raise PluginError(conflict)
    return offers[0]


def _hint(name: str) -> str:
    """How to get a command that is not there, or the closest one."""
    owner = COMMANDS.get(name)
    if owner is None:
        return did_you_mean(name, {*COMMANDS, *(one.name for one in listed())})
    try:
        version = metadata.version(owner)
    except metadata.PackageNotFoundError:
        return f"; it comes with {owner}, which is not installed: python -m pip install {owner}"
    return (
        f"; it comes with {owner}, but {owner} {version} as it is installed here does not bring "
        f"it: python -m pip install --upgrade {owner}, or in a checkout install that again"
    )
