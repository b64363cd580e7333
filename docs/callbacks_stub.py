"""The stub `hatbus/callbacks.pyi`, made of the entry points of hatbus's own plugins."""

from __future__ import annotations

from pathlib import Path

from hatbus import discovery
from hatbus.discovery import FIRST_PARTY

STUB = Path(__file__).resolve().parents[1] / "hatbus" / "callbacks.pyi"
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
    """The stub's text; what is not installed is Any to a type checker."""
    found = [discovery.lookup(name) for name in FIRST_PARTY]
    lines = sorted(f"from {one.module} import {one.attr} as {one.attr}\n" for one in found)
    return _HEAD + "".join(dict.fromkeys(lines)) + _TAIL
