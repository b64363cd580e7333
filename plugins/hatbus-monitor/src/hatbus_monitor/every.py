"""When something counted in steps or epochs is due."""

from __future__ import annotations

from typing import Final

from hatbus.errors import PluginError

NEVER: Final = 1 << 62
"""More steps than any run has."""


def interval(every: int | None) -> int:
    """Steps from one time to the next; ``NEVER`` for < 1 and None."""
    return every if every is not None and every >= 1 else NEVER


def is_due(every: int | None, index: int) -> bool:
    """Whether a thing that happens every so many happens at a 0-based index; < 1 or None: never."""
    return every is not None and every >= 1 and (index + 1) % every == 0


def at_least_one(value: int, option: str) -> int:
    """The value.

    Raises:
        PluginError: it is < 1.
    """
    if value < 1:
        raise PluginError(f"{option}={value!r}; accepted: 1 or more steps")
    return value
