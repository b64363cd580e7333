"""Checks of the options of ``Checkpoint``."""

from __future__ import annotations

from typing import Any, Final

from hatbus import option_values
from hatbus.errors import JobError

_UNITS: Final = ("epoch", "step")


def check_options(prefix: Any, interval: Any, unit: Any, seconds: Any, copies: Any) -> None:
    """Refuses intervals, names and numbers that cannot be used."""
    if copies not in (1, 2):
        raise JobError(f"checkpoint: copies is {copies!r}; accepted: 1, 2")
    option_values.one_of("checkpoint: interval_by", unit, _UNITS)
    if interval is not None:
        option_values.whole("checkpoint: save_interval", interval, 1)
    if seconds is not None:
        option_values.number("checkpoint: save_seconds", seconds, above=True)
    if not isinstance(prefix, str) or "/" in prefix or prefix.startswith("."):
        raise JobError(
            f"checkpoint: name_prefix is {prefix!r:.80}; accepted: a text without '/', and without "
            "'.' at its start"
        )
