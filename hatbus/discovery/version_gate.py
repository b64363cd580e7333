"""Which hatbus a plugin needs: what its distribution requires, against the one that runs."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from hatbus.discovery.first_party import normalized
from hatbus.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from packaging.requirements import Requirement

    from hatbus.discovery.entry_points import Found


def refuse_unfit(found: Found) -> None:
    """Refuses a plugin that was made for another hatbus; it is not imported.

    Raises:
        PluginError: its distribution requires another version.
    """
    why = misfit(found)
    if why:
        raise PluginError(
            f"{found.phrase} {why}; install versions that fit: "
            f"python -m pip install --upgrade hatbus {found.distribution}"
        )


def misfit(found: Found) -> str:
    """Why a plugin cannot run with this hatbus, as the end of a sentence; empty if it can."""
    from hatbus import __version__

    for requirement in requirements_on_hatbus(found.requirements):
        if not requirement.specifier.contains(__version__, prereleases=True):
            return f"needs hatbus{requirement.specifier}, and this is hatbus {__version__}"
    return ""


def requirements_on_hatbus(requirements: Iterable[str]) -> list[Requirement]:
    """What a distribution requires of hatbus here; what only an extra requires is left out."""
    return [
        found
        for text in requirements
        if normalized(text).startswith("hatbus")
        for found in _read(text)
        if normalized(found.name) == "hatbus"
    ]


@cache  # the plugins of one distribution require the same
def _read(text: str) -> list[Requirement]:
    """The requirement, if it can be read and applies here."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        found = Requirement(text)
    except InvalidRequirement:  # pip let it pass; that is not ours to judge
        return []
    applies = found.marker is None or found.marker.evaluate({"extra": ""})
    return [found] if applies else []
