"""The stub `hatbus/callbacks.pyi`, made of the entry points of hatbus's own plugins."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "hatbus" / "callbacks.pyi"
_HEAD = '''\
# Written by docs/refresh.py out of the entry points of hatbus's own plugins.
"""Every installed callback by its class name; type checkers and editors know hatbus's own here."""

from typing import Any

from hatbus.events.callback_mixin import CallbackMixin as CallbackMixin
'''
_TAIL = """\

def __getattr__(name: str) -> Any: ...  # the callbacks of other distributions
"""


def callbacks_stub() -> str:
    """The stub's text, by what the checkout offers; what is not installed is Any to a checker."""
    places = (value.split(":") for file in _projects() for value in _entry_points(file))
    lines = sorted(f"from {module} import {name} as {name}\n" for module, name in places)
    return _HEAD + "".join(dict.fromkeys(lines)) + _TAIL


def _projects() -> list[Path]:
    return sorted(ROOT.glob("plugins/*/pyproject.toml"))


def _entry_points(project: Path) -> list[str]:
    read = tomllib.loads(project.read_text("utf-8"))
    return list(read["project"]["entry-points"]["hatbus.plugins"].values())
