"""When something counted in steps or epochs is due."""

from __future__ import annotations

from typing import Any, Final

from hatbus.errors import JobError

NEVER: Final = 1 << 62
"""More steps than any run has."""


def interval(every: int | None) -> int:
    """Steps from one time to the next; ``NEVER`` for < 1 and None."""
    return every if every is not None and every >= 1 else NEVER


def is_due(every: int | None, index: int) -> bool:
    """Whether a thing that happens every so many happens at a 0-based index; < 1 or None: never."""
    return every is not None and every >= 1 and (index + 1) % every == 0


def check_interval(name: str, value: Any) -> None:
    """Refuses what is no interval.

    Raises:
        JobError: it is no whole number and not None.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise JobError(f"{name} is {value!r}; accepted: a whole number, below 1 for never")
