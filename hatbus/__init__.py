"""A PyTorch training loop in which every event is a pluggy hook and every callback a plugin.

Importing this package is cheap: each public name is imported when it is first used (PEP 562), so
nothing that only lists or helps ever loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hatbus.batches.batch_processor import BatchProcessor
    from hatbus.bus.bus import Bus
    from hatbus.errors import HatbusError
    from hatbus.events.callback_mixin import CallbackMixin
    from hatbus.events.declare import hookimpl, plugin
    from hatbus.loop.context import Context
    from hatbus.trainer import Trainer

    __version__: str
    """The installed version, such as ``"0.1.0"``; in a checkout that is not, with ``+checkout``."""

__all__ = [
    "BatchProcessor",
    "Bus",
    "CallbackMixin",
    "Context",
    "HatbusError",
    "Trainer",
    "__version__",
    "hookimpl",
    "plugin",
]

_HOME: Final = {
    "BatchProcessor": "hatbus.batches.batch_processor",
    "Bus": "hatbus.bus.bus",
    "CallbackMixin": "hatbus.events.callback_mixin",
    "Context": "hatbus.loop.context",
    "HatbusError": "hatbus.errors",
    "Trainer": "hatbus.trainer",
    "hookimpl": "hatbus.events.declare",
    "plugin": "hatbus.events.declare",
}
"""Public name to the module that holds it; no module has the name of a public name."""


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        from importlib import import_module

        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'hatbus' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; in a checkout that is not installed, the one of the source."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hatbus")
    except PackageNotFoundError:
        return f"{_source_version()}+checkout"


def _source_version() -> str:
    import tomllib
    from pathlib import Path

    try:
        source = Path(__file__).parents[1].joinpath("pyproject.toml").read_text("utf-8")
    except OSError:
        return "0"
    return str(tomllib.loads(source)["project"]["version"])
