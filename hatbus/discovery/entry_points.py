"""Finds the plugins that are installed, without importing any of them.

One scan of the entry points in group ``hatbus.plugins`` gives names; a class is imported only by
``Found.load``, when a job or the command line asked for it. A broken plugin that is not used
therefore never stops anything.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hatbus.discovery.allow_list import ALLOW, names_allowed
from hatbus.discovery.entries import entries_of
from hatbus.discovery.first_party import FIRST_PARTY, is_first_party
from hatbus.discovery.version_gate import refuse_unfit
from hatbus.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hatbus.discovery.class_source import ClassSource

GROUP: Final = "hatbus.plugins"
"""The entry-point group in which a distribution offers its plugins."""
SOURCE: Final = "__hatbus_source__"


class Found:
    """One installed plugin: an entry point and the distribution that offers it.

    Attributes:
        kind: what it is an entry point of, for messages.
        name: of the entry point; the plugin's only name.
        value: ``"package.module:Class"``.
        distribution: name of the distribution.
        version: of the distribution.
    """

    __slots__ = ("_entry", "distribution", "name", "value", "version")
    kind: ClassVar[str] = "plugin"

    def __init__(self, entry: metadata.EntryPoint, distribution: str, version: str) -> None:
        self._entry = entry
        self.name = entry.name
        self.value = entry.value
        self.distribution = distribution
        self.version = version

    def __repr__(self) -> str:
        return f"<Found {self.name!r}: {self.value} of {self.source}>"

    @property
    def module(self) -> str:
        """The module that holds the class."""
        return self.value.partition(":")[0].strip()

    @property
    def attr(self) -> str:
        """The class's name inside its module."""
        return self.value.partition(":")[2].partition("[")[0].strip()

    @property
    def source(self) -> str:
        """Distribution and version in one phrase."""
        return f"{self.distribution} {self.version}"

    @property
    def phrase(self) -> str:
        """What it is and whose, as a message begins."""
        return f"{self.kind} {self.name!r} of {self.source}"

    @property
    def owner(self) -> str:
        """The distribution of hatbus that its name is reserved for; empty if it is free."""
        return FIRST_PARTY[self.name].distribution if self.name in FIRST_PARTY else ""

    @property
    def requirements(self) -> list[str]:
        """What the distribution requires, as written in its metadata."""
        return list(self._entry.dist.requires or []) if self._entry.dist else []

    @property
    def metadata(self) -> metadata.PackageMetadata | None:
        """The distribution's metadata; None where it has none."""
        return self._entry.dist.metadata if self._entry.dist else None

    def load(self) -> type[Any]:
        """Imports the class.

        Raises:
            PluginError: ``HATBUS_ALLOW`` refuses its distribution, it needs another hatbus,
                importing it failed, or it is no class.
        """
        loaded = self._imported()
        if not isinstance(loaded, type):
            raise PluginError(
                f"{self.phrase}: {self.value!r} is a {type(loaded).__name__}; accepted: a class"
            )
        if SOURCE not in vars(loaded):
            setattr(loaded, SOURCE, self.source)
        return loaded

    def _imported(self) -> Any:
        """What the entry point names.

        Raises:
            PluginError: ``HATBUS_ALLOW`` refuses its distribution, it needs another hatbus, or
                importing it failed.
        """
        refuse_not_allowed(self)
        refuse_unfit(self)
        try:
            return self._entry.load()
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.phrase} cannot be loaded from {self.value!r}: "
                f"{type(error).__name__}: {error}; repair or uninstall {self.distribution}"
            ) from error

    def summary(self) -> str:
        """The first line of the class's docstring; empty without one."""
        from hatbus.discovery.module_files import find_source, said, syntax_error
        from hatbus.discovery.summaries import quick_summary

        file = find_source(self.module)
        if file is None:
            return f"no source for {self.value}"
        if not is_first_party(self.distribution):  # to parse them all takes long
            error = syntax_error(file)
            if error is not None:
                return said(error, Path(file.name))
        quick = quick_summary(file.read_text("utf-8", "replace"), self.attr)
        if quick is not None:
            return quick
        reading = self.describe()
        return reading.summary if reading else f"no class {self.attr!r} in {file}"

    def describe(self) -> ClassSource | None:
        """What the source says about the class, read without importing it; None without source."""
        from hatbus.discovery.class_source import Sources

        return Sources().read(self.module, self.attr)


def installed() -> tuple[Found, ...]:
    """Every plugin that is installed, by name; two of one name stand next to each other."""
    return _scan(tuple(sys.path))


def forget() -> None:
    """Forgets the scan: what was installed since is found too."""
    _scan.cache_clear()


def lookup(name: str, where: str = "") -> Found:
    """The installed plugin of this name.

    Args:
        name: of its entry point.
        where: the name stands, such as ``"in job.toml [plugins.cos_lr]"``.

    Raises:
        PluginError: there is none, or more than one, or the name is not theirs to offer.
    """
    offers = [found for found in installed() if found.name == name]
    if not offers:
        raise PluginError(f"unknown plugin {name!r}{where and ' '}{where}{hint(name)}")
    conflict = conflict_of(offers)
    if conflict:
        raise PluginError(conflict)
    return offers[0]


def hint(name: str) -> str:
    """End of a message about a plugin that is not installed: a closer name, or how to get it."""
    if name in FIRST_PARTY:
        return f"; it comes with {FIRST_PARTY[name].distribution}, {how_to_install(name)}"
    known = {found.name for found in installed()}
    close = did_you_mean(name, {*known, *FIRST_PARTY})
    if "did you mean" in close:
        return close
    if not known:
        return f"; {how_to_install()}"
    return (
        "; nothing that is installed offers it: `hatbus plugins` lists what there is; a class of "
        "your own is -p FILE.py:Class, or use = 'FILE.py:Class' in a job"
    )


def how_to_install(name: str = "") -> str:
    """What to do when a plugin is missing."""
    try:
        metadata.distribution("hatbus")
    except metadata.PackageNotFoundError:
        return (
            "hatbus is used from a checkout that is not installed, so there are no plugins: "
            'in the checkout, python -m pip install -c constraints.txt -e ".[all]"'
        )
    if name:
        return f"which is not installed: python -m pip install {FIRST_PARTY[name].distribution}"
    return "no plugin is installed: python -m pip install 'hatbus[all]'"


def conflict_of(offers: Sequence[Found]) -> str:
    """What is wrong with these offers of one name; empty if nothing is."""
    name, kind, owner = offers[0].name, offers[0].kind, offers[0].owner
    foreign = next((found for found in offers if not is_first_party(found.distribution)), None)
    if owner and foreign is not None:
        return (
            f"{kind} {name!r} is offered by {foreign.source} ({foreign.value}), but the name is "
            f"reserved for {owner}; uninstall {foreign.distribution}, "
            "or ask its author for another name"
        )
    if len(offers) > 1:
        both = " and ".join(f"{found.source} ({found.value})" for found in offers)
        return f"{kind} {name!r} is offered by {both}; uninstall one of them"
    return ""


def refuse_not_allowed(found: Found) -> None:
    """Refuses a plugin whose distribution is not on the list in ``HATBUS_ALLOW``.

    Raises:
        PluginError: it is not.
    """
    if not is_allowed(found):
        raise PluginError(
            f"{found.phrase} is refused: {ALLOW}="
            f"{os.environ[ALLOW]!r} does not name {found.distribution!r}"
        )


def is_allowed(found: Found) -> bool:
    """Whether ``HATBUS_ALLOW`` is empty or names the distribution."""
    return names_allowed(found.distribution)


def entry_point_name(cls: type[Any]) -> str | None:
    """The name under which a class is installed; None if it is not."""
    package = cls.__module__.partition(".")[0]
    close = None
    for found in installed():
        if found.attr != cls.__qualname__:
            continue
        if found.module == cls.__module__:
            return found.name
        if found.module.partition(".")[0] == package:
            close = close or found.name
    return close


@lru_cache(maxsize=1)
def _scan(path: tuple[str, ...]) -> tuple[Found, ...]:  # noqa: ARG001 - the cache's key
    read: dict[int, tuple[str, str]] = {}  # each distribution's metadata is parsed once
    found = []
    for entry in entries_of(GROUP):
        if id(entry.dist) not in read:
            about = entry.dist.metadata if entry.dist else {"Name": "?", "Version": "?"}
            read[id(entry.dist)] = (str(about["Name"]), str(about["Version"]))
        found.append(Found(entry, *read[id(entry.dist)]))
    return tuple(sorted(found, key=lambda one: (one.name, one.distribution)))
