"""Public names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["lazily"]


def lazily(package: str, **home: str) -> Callable[[str], Any]:
    """A module's ``__getattr__``, so that importing the package does not import torch.

    ``dir(package)``, which interpreters complete from, has the names as well.

    Args:
        package: the package, ``__name__``.
        home: public name to the submodule that holds it.
    """

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    module = vars(sys.modules[package])
    module["__dir__"] = lambda: sorted({*module, *home})
    return get
