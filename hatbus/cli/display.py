"""How the command line shows lists and errors.

An error is one line for a user's mistake, a traceback for a bug.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from hatbus.errors import HatbusError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NARROW: Final = 32
PLUGIN_FAILED = 3
USER_CODE_FAILED = 1
INTERRUPTED = 130


def explain(error: BaseException, command: str = "", *, traceback: bool = False) -> int:
    """Prints an error on stderr.

    Args:
        error: what ended the command.
        command: of a plugin's distribution, that ran; empty for hatbus's own.
        traceback: show the traceback of a user's mistake too.

    Returns:
        The exit code.
    """
    if isinstance(error, KeyboardInterrupt):
        print("hatbus: interrupted", file=sys.stderr)
        return INTERRUPTED
    guilty = guilty_note(error)
    if isinstance(error, HatbusError):
        if traceback:
            show_traceback(error)
        show_lines(f"{error} ({guilty})" if guilty else str(error))
        return error.exit_code
    guilty = guilty or command
    show_traceback(error)
    message = f"{type(error).__name__}: {error}".partition("\n")[0]
    if guilty:
        show_lines(f"{guilty} failed with {message}")
        return PLUGIN_FAILED
    show_lines(message)
    return USER_CODE_FAILED


def show_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Prints rows in columns; in a terminal the last one, a text, is wrapped inside its column.

    Elsewhere a row is one line, which other programs like better.
    """
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]) - 1)]
    whole = room = sys.maxsize
    if sys.stdout.isatty():
        import shutil  # with every way of packing, which a listing need not wait for

        whole = shutil.get_terminal_size().columns
        room = whole - sum(widths)
    below = room < _NARROW
    indent = "    " if below else " " * sum(widths)
    for row in rows:
        head = "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        lines = _wrapped(row[-1], whole - len(indent) if below else room)
        first = [head.rstrip(), *lines] if below else [head + lines[0], *lines[1:]]
        print(f"\n{indent}".join(first).rstrip())


def _wrapped(text: str, room: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text.replace("``", ""), room, break_on_hyphens=False) or [""]


def guilty_note(error: BaseException) -> str:
    """Plugin, distribution, event and step that an exception came out of; empty for the core."""
    if not hasattr(error, "__notes__"):
        return ""
    from hatbus.bus.blame import blame_of

    found = blame_of(error)
    if found is None or found.plugin is None:
        return ""
    start = f"in plugin {found.plugin!r}"
    note = next((note for note in error.__notes__ if note.startswith(start)), start)
    return note.removeprefix("in ")


def show_lines(text: str) -> None:
    """Prints each line of a message as one error."""
    who = f"[rank {os.environ.get('RANK', '0')}] " if is_one_of_several() else ""
    for line in text.splitlines() or [""]:
        print(f"hatbus: error: {who}{line}", file=sys.stderr)


def is_one_of_several() -> bool:
    """Whether this process is one of several of a run, which all write to one terminal."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def show_traceback(error: BaseException) -> None:
    """Prints the traceback with its causes and notes."""
    import traceback

    traceback.print_exception(error)
