"""Installed plugins by the name of their class, as ``hatbus.callbacks`` offers them."""

from __future__ import annotations

from typing import Any

from hatbus.discovery.entry_points import hint, installed, lookup
from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.errors import PluginError, did_you_mean


def class_names() -> list[str]:
    """The class names of what is installed."""
    return sorted({found.attr for found in installed()})


def load_class(name: str) -> type[Any]:
    """Imports the class of this name.

    Raises:
        PluginError: no installed distribution offers it, several do, or it cannot be loaded.
    """
    return lookup(_entry_point(name)).load()


def _entry_point(name: str) -> str:
    """The entry point whose class has this name.

    Raises:
        PluginError: none, or several of different distributions.
    """
    offers = [found for found in installed() if found.attr == name]
    values = {found.value for found in offers}
    if len(values) > 1:
        both = " and ".join(f"{found.name!r} of {found.source}" for found in offers)
        raise PluginError(f"callback {name!r} is offered as {both}; import it from its own package")
    if offers:
        return offers[0].name
    for entry_point, own in FIRST_PARTY.items():
        if own.class_name == name:
            raise PluginError(f"no callback {name!r}{hint(entry_point)}")
    known = {*class_names(), "CallbackMixin", *(own.class_name for own in FIRST_PARTY.values())}
    raise PluginError(f"no callback {name!r}{did_you_mean(name, known)}")
