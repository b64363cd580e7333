"""Keeps the records of the log readable while a display holds the bottom of the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.logging import RichHandler

from hatbus.log import log

if TYPE_CHECKING:
    from rich.console import Console


class FollowingHandler(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` (or ``sys.stdout``) is at the moment."""

    def __init__(self, name: str = "stderr") -> None:
        super().__init__(getattr(sys, name))
        self._name = name

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        self.stream = getattr(sys, self._name)
        super().emit(record)


class LogThrough:
    """Leads the handlers that write to the terminal above a display, and back again.

    If nobody handles the records of the logger "hatbus", they are shown for as long as the display
    stands: whoever asks for a progress display wants to see what happens.

    Args:
        name: of the stream that shows them: ``"stderr"`` or ``"stdout"``.
    """

    def __init__(self, name: str = "stderr") -> None:
        self._name = name
        self._undo: list[Any] = []

    def start(self, console: Console | None, terminal: Sequence[object]) -> None:
        """Leads records elsewhere.

        Args:
            console: of the display; None when it does not hold the terminal.
            terminal: the streams that ``sys.stdout`` and ``sys.stderr`` were before it did.
        """
        if not log.hasHandlers():
            self._add_handler()
        if console is None:
            return
        for handler in (*log.handlers, *logging.getLogger().handlers):
            if isinstance(handler, RichHandler):
                self._set(handler, "console", console)
                continue
            stream = getattr(handler, "stream", None)
            for old, new in zip(terminal, (sys.stdout, sys.stderr), strict=True):
                if stream is old and new is not old:
                    self._set(handler, "stream", new)

    def stop(self) -> None:
        """Takes everything back; may be called twice."""
        while self._undo:
            self._undo.pop()()

    def _set(self, handler: logging.Handler, name: str, value: object) -> None:
        before = getattr(handler, name)
        setattr(handler, name, value)
        self._undo.append(lambda: setattr(handler, name, before))

    def _add_handler(self) -> None:
        handler, level = FollowingHandler(self._name), log.level
        log.addHandler(handler)
        if level == logging.NOTSET:
            log.setLevel(logging.INFO)
        self._undo += [lambda: log.setLevel(level), lambda: log.removeHandler(handler)]
