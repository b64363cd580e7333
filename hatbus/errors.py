"""The one family of errors that hatbus raises for a mistake it can explain.

Each message is one line: what, where, what is accepted, what to do next. The command line
prints it after ``hatbus: error:`` and exits with the class's ``exit_code``; a traceback is shown
only for a bug in a plugin, never for a user's mistake.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "HatbusError",
    "HookError",
    "JobError",
    "NonFiniteError",
    "OrderError",
    "PeerError",
    "PluginError",
    "SaveError",
    "did_you_mean",
]


class HatbusError(Exception):
    """Base of the family. ``exit_code`` is the process's exit status."""

    exit_code = 2


class JobError(HatbusError):
    """A job file, option or constructor value that cannot be used."""


class PluginError(HatbusError):
    """A plugin that cannot be found, loaded or registered."""


class OrderError(PluginError):
    """Declared orders that contradict each other."""


class HookError(HatbusError):
    """A hook implementation that broke the contract of its event while the run was on."""

    exit_code = 3


class CheckpointError(HatbusError):
    """A checkpoint that cannot be used."""

    exit_code = 4


class DataError(HatbusError):
    """A loader that is empty, cannot be passed over again, or gives other data than before."""

    exit_code = 5


class SaveError(HatbusError):
    """A checkpoint or file that could not be written."""

    exit_code = 6


class NonFiniteError(HatbusError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 7


class PeerError(HatbusError):
    """Another process of the run failed or disagrees."""

    exit_code = 8


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End of a message about an unknown word: the closest known one, or the list of all.

    Args:
        word: what the user wrote.
        known: every accepted word.

    Returns:
        ``"; did you mean 'cos_lr'?"``, or ``"; known: 'a', 'b'"`` when nothing is close.
    """
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(map(repr, names))}" if names else ""
