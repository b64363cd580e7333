"""The terminal, as rich writes on it: names of files and plugins are shown as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def terminal(*, stderr: bool = False) -> Console:
    """A console that takes ``[...]`` and ``:...:`` in a text for what they are: no markup.

    Args:
        stderr: write there, not on stdout.
    """
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False)
