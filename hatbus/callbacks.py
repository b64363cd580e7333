"""Every installed callback by its class name: ``from hatbus.callbacks import CosLrUpdater``.

Only the distribution that holds the class asked for is imported.
"""

from __future__ import annotations

from typing import Any

from hatbus import discovery
from hatbus.discovery.entry_points import hint
from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.errors import PluginError, did_you_mean
from hatbus.events.callback_mixin import CallbackMixin

__all__ = ["CallbackMixin"]


def __getattr__(name: str) -> Any:
    """Imports the class.

    Raises:
        ImportError: no installed distribution offers it, or it cannot be loaded. (Python hides the
            message of an ``AttributeError`` from ``from hatbus.callbacks import ...``.)
        AttributeError: the name is not one that a class could have.
    """
    if not name[:1].isupper():
        raise AttributeError(f"module 'hatbus.callbacks' has no attribute {name!r}")
    try:
        loaded = discovery.lookup(_entry_point(name)).load()
    except PluginError as error:
        raise ImportError(str(error), name=__name__) from error
    globals()[name] = loaded
    return loaded


def __dir__() -> list[str]:
    return sorted({*__all__, *(found.attr for found in discovery.installed())})


def _entry_point(name: str) -> str:
    """The entry point whose class has this name.

    Raises:
        PluginError: none, or several of different distributions.
    """
    offers = [found for found in discovery.installed() if found.attr == name]
    values = {found.value for found in offers}
    if len(values) > 1:
        both = " and ".join(f"{found.name!r} of {found.source}" for found in offers)
        raise PluginError(f"callback {name!r} is offered as {both}; import it from its own package")
    if offers:
        return offers[0].name
    for entry_point, own in FIRST_PARTY.items():
        if own.class_name == name:
            raise PluginError(f"no callback {name!r}{hint(entry_point)}")
    known = {*__dir__(), *(own.class_name for own in FIRST_PARTY.values())}
    raise PluginError(f"no callback {name!r}{did_you_mean(name, known)}")
