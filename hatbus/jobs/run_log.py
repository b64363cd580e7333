"""``run.log`` in a run's folder: what the terminal says, with the time, to be read later."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hatbus.log import log

LOG_FILE: Final = "run.log"


class RunLog(logging.FileHandler):
    """Appends hatbus's log to a file; a disk that is full is no reason to end a run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Says nothing: the same record is on the terminal."""

    def close(self) -> None:
        """Closes the file, whatever becomes of what it could not take."""
        with suppress(OSError):
            super().close()

    def say(self, level: int, text: str) -> None:
        """Writes a line that only the file gets: the terminal says it in its own way."""
        self.handle(logging.LogRecord("hatbus", level, "", 0, text, (), None))


@contextmanager
def logged(folder: Path, title: str) -> Iterator[None]:
    """Appends what is logged meanwhile, what began, and how it ended."""
    handler = _opened(folder / LOG_FILE)
    if handler is None:
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log.addHandler(handler)
    handler.say(logging.INFO, f"{title} begins")
    try:
        yield
    except SystemExit as left:
        handler.say(logging.INFO, f"{title} ends with exit code {left.code}")
        raise
    except BaseException as error:
        handler.say(logging.ERROR, f"{title} fails: {type(error).__name__}: {error}")
        raise
    else:
        handler.say(logging.INFO, f"{title} ends")
    finally:
        log.removeHandler(handler)
        handler.close()


def _opened(file: Path) -> RunLog | None:
    """The file's handler; None where it cannot be: whoever needs the folder says so."""
    try:
        return RunLog(file, encoding="utf-8")
    except OSError:
        return None
