"""Where progress is shown: a live terminal, plain lines in a pipe or file, a notebook."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from hatbus_monitor.console_log import LogThrough
from hatbus_monitor.progress_view import Snapshot, bars, html, line

KINDS: Final = ("auto", "live", "plain", "notebook")


class Display(Protocol):
    """Shows snapshots.

    Attributes:
        is_live: whether a snapshot replaces the one before; otherwise each is a line of its own.
    """

    is_live: bool

    def start(self, snapshot: Snapshot) -> None:
        """Opens the display."""

    def show(self, snapshot: Snapshot) -> None:
        """Shows the present state."""

    def stop(self) -> None:
        """Leaves everything as it was found; may be called twice."""


class LiveDisplay:
    """Bars that stay at the bottom of the terminal; what others print appears above them."""

    is_live = True

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, markup=False, emoji=False)
        self._live: Live | None = None
        self._last = Snapshot()
        self._log = LogThrough()

    def start(self, snapshot: Snapshot) -> None:
        """Draws the bars and leads stdout (if it is a terminal), stderr and the log above them."""
        # Only from show() is anything drawn: a thread would draw into what others are printing.
        self._last = snapshot
        self._live = Live(
            _above_cursor(snapshot),
            console=self._console,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        before = (sys.stdout, sys.stderr)
        self._live.start(refresh=True)
        # Left visible, on a line of its own: a process that is killed cannot put it back.
        self._console.show_cursor(True)
        self._log.start(self._console, before)

    def show(self, snapshot: Snapshot) -> None:
        """Draws the bars anew."""
        if self._live is not None:
            self._last = snapshot
            try:
                self._live.update(_above_cursor(snapshot), refresh=True)
            except OSError:  # a terminal that has gone away must not end the run
                self.stop()

    def stop(self) -> None:
        """Leaves the last state on the screen, the cursor below it, the streams as they were."""
        live, self._live = self._live, None
        if live is not None:
            try:
                live.update(bars(self._last))
                live.stop()
            except OSError:
                pass
            finally:
                self._log.stop()


def _above_cursor(snapshot: Snapshot) -> RenderableType:
    return Group(bars(snapshot), Text(""))


class PlainDisplay:
    """One line per snapshot on stderr."""

    is_live = False

    def __init__(self) -> None:
        self._log = LogThrough()
        self._is_broken = False

    def start(self, snapshot: Snapshot) -> None:
        """Makes sure that the log is seen."""
        self._log.start(None, ())

    def show(self, snapshot: Snapshot) -> None:
        """Writes a line; a reader that has gone away must not end the run."""
        if self._is_broken:
            return
        try:
            print(line(snapshot), file=sys.stderr, flush=True)  # noqa: T201 - what it is for
        except (OSError, ValueError):
            self._is_broken = True

    def stop(self) -> None:
        """Takes back what ``start`` did to the log."""
        self._log.stop()


class _Cell:
    """What a notebook shows."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __repr__(self) -> str:
        return line(self._snapshot)

    def _repr_html_(self) -> str:
        return html(self._snapshot)


class NotebookDisplay:
    """A bar in the cell's output, replaced in place."""

    is_live = True

    def __init__(self) -> None:
        self._handle: Any = None
        self._log = LogThrough("stdout")  # a notebook paints stderr as if it were an error

    def start(self, snapshot: Snapshot) -> None:
        """Puts the bar into the cell's output, and makes sure that the log is seen below it."""
        from IPython.display import display

        self._handle = display(_Cell(snapshot), display_id=True)
        self._log.start(None, ())

    def show(self, snapshot: Snapshot) -> None:
        """Replaces the bar."""
        if self._handle is not None:
            self._handle.update(_Cell(snapshot))

    def stop(self) -> None:
        """Takes back what ``start`` did to the log; the bar stays."""
        self._handle = None
        self._log.stop()


def display_of(kind: str) -> Display:
    """The display of a kind; ``"auto"`` looks at where stderr leads."""
    console = Console(stderr=True, markup=False, emoji=False)
    if kind == "notebook" or (kind == "auto" and console.is_jupyter):
        with contextlib.suppress(ImportError):
            import IPython.display  # noqa: F401

            return NotebookDisplay()
        return PlainDisplay()
    is_terminal = console.is_terminal and not console.is_dumb_terminal
    if kind == "live" or (kind == "auto" and is_terminal):
        return LiveDisplay(console)
    return PlainDisplay()
