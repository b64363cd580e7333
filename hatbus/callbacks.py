"""Every installed callback by its class name: ``from hatbus.callbacks import CosLrUpdater``.

Only the distribution that holds the class asked for is imported. Type checkers and editors read
``callbacks.pyi`` in the place of this file.
"""

from __future__ import annotations

from typing import Any

from hatbus.discovery.class_names import class_names, load_class
from hatbus.errors import PluginError
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
        loaded = load_class(name)
    except PluginError as error:
        raise ImportError(str(error), name=__name__) from error
    globals()[name] = loaded
    return loaded


def __dir__() -> list[str]:
    return sorted({*__all__, *class_names()})
