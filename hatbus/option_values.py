"""Checks of constructor values; each error says what was given and what is accepted.

``name`` is the option, with the plugin before it where several have one of that name:
``"grad_clip: max_norm"``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "UNITS",
    "is_number",
    "names",
    "number",
    "one_of",
    "path",
    "seconds",
    "short",
    "text",
    "whole",
]

_UNITS: Final = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_PLAIN: Final = re.compile(r"\d+(?:\.\d+)?")
_CLOCK: Final = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)")
UNITS: Final = ("step", "epoch")
"""What intervals of plugins are counted in."""


def one_of(name: str, value: Any, words: Sequence[str]) -> None:
    """Refuses a word that is not in the list.

    Raises:
        JobError: what was given, and what is accepted.
    """
    if value not in words:
        nearest = did_you_mean(value, words) if isinstance(value, str) else ""
        hint = nearest if "did you mean" in nearest else ""
        raise JobError(f"{name} is {value!r}; accepted: {', '.join(map(repr, words))}{hint}")


def whole(name: str, value: Any, least: int) -> None:
    """Refuses what is no whole number, or less than ``least``.

    Raises:
        JobError: what was given, and what is accepted.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise JobError(f"{name} is {value!r}; accepted: a whole number of at least {least}")


def number(
    name: str, value: Any, least: float = 0.0, most: float = math.inf, *, above: bool = False
) -> None:
    """Refuses what is no finite number, or lies outside ``least`` to ``most``.

    Args:
        name: of the option.
        value: what was given.
        least: the least value.
        most: the greatest value.
        above: ``least`` itself is refused too.

    Raises:
        JobError: what was given, and what is accepted.
    """
    is_within = is_number(value) and math.isfinite(value) and least <= value <= most
    if is_within and not (above and value == least):
        return
    start = f"above {least:g}" if above else f"of at least {least:g}"
    end = f" and at most {most:g}" if most < math.inf else ""
    raise JobError(f"{name} is {value!r}; accepted: a number {start}{end}")


def seconds(name: str, value: Any) -> float:
    """A length of time in seconds.

    Args:
        name: of the option.
        value: seconds; or a text: ``"2h30m"``, ``"90 min"``, ``"1 day 2 h"``, ``"2:30:00"``, or as
            a scheduler writes it, ``"1-02:30:00"``.

    Raises:
        JobError: what was given, and what is accepted.
    """
    found = float(value) if is_number(value) else _seconds_of(value)
    if found is None or not 0 < found < math.inf:
        raise JobError(
            f"{name} is {value!r}; accepted: seconds above 0, or a time such as '2h30m', '90 min', "
            "'1 day' or '2:30:00'"
        )
    return found


def _seconds_of(given: Any) -> float | None:
    """A text's time; None where it is none."""
    if not isinstance(given, str):
        return None
    words = given.strip().lower()
    if _PLAIN.fullmatch(words):
        return float(words)
    clock = _CLOCK.fullmatch(words)
    if clock:
        days, hours, minutes, rest = (float(part or 0) for part in clock.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    total, at = (0.0 if words else math.nan), 0
    while at < len(words):
        part = _PART.match(words, at)
        if part is None or part[2] not in _UNITS:
            return None
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return total


def text(name: str, value: Any) -> None:
    """Refuses what is no text, or an empty one.

    Raises:
        JobError: what was given, and what is accepted.
    """
    if not isinstance(value, str) or not value:
        raise JobError(f"{name} is {value!r}; accepted: a name")


def path(name: str, value: Any) -> Path:
    """The place that a path means now; refuses what is no path.

    A plugin asks when it is built: a run whose code changes its folder then writes in one place.

    Returns:
        Absolute, with the user's own folder for ``~``; links are not followed.

    Raises:
        JobError: what was given, and what is accepted.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise JobError(f"{name} is {value!r:.80}; accepted: a path")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:  # no such user
        raise JobError(f"{name} is {str(value)!r}; accepted: a path; {error}") from error


def short(place: Path) -> Path:
    """A place as one would write it in the present folder, for messages.

    Returns:
        Relative to that folder where it lies below it; else as it is.
    """
    here = Path.cwd()
    return place.relative_to(here) if place.is_relative_to(here) else place


def names(name: str, value: Any) -> None:
    """Refuses what is no list of texts; a single text is none.

    Raises:
        JobError: what was given, and what is accepted.
    """
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    if not is_list or not all(isinstance(one, str) for one in value):
        raise JobError(f"{name} is {value!r:.80}; accepted: a list of names")


def is_number(value: Any) -> bool:
    """Whether a value is a number; infinities and NaN are, truth values are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
