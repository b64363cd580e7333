"""How the command line shows an error: one line for a user's mistake, a traceback for a bug."""

from __future__ import annotations

import sys

from hatbus.errors import HatbusError

PLUGIN_FAILED = 3
USER_CODE_FAILED = 1
INTERRUPTED = 130


def explain(error: BaseException, *, traceback: bool = False) -> int:
    """Prints an error on stderr.

    Args:
        error: what ended the command.
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
    show_traceback(error)
    message = f"{type(error).__name__}: {error}".partition("\n")[0]
    if guilty:
        show_lines(f"{guilty} failed with {message}")
        return PLUGIN_FAILED
    show_lines(message)
    return USER_CODE_FAILED


def guilty_note(error: BaseException) -> str:
    """Plugin, distribution, event and step that an exception came out of; empty for the core."""
    if not hasattr(error, "__notes__"):
        return ""
    from hatbus.blame import blame_of

    found = blame_of(error)
    if found is None or found.plugin is None:
        return ""
    start = f"in plugin {found.plugin!r}"
    note = next((note for note in error.__notes__ if note.startswith(start)), start)
    return note.removeprefix("in ")


def show_lines(text: str) -> None:
    """Prints each line of a message as one error."""
    for line in text.splitlines() or [""]:
        print(f"hatbus: error: {line}", file=sys.stderr)


def show_traceback(error: BaseException) -> None:
    """Prints the traceback with its causes and notes."""
    import traceback

    traceback.print_exception(error)
