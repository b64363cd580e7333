"""``run.log`` in a run's folder: what the terminal says, with the time; and ``job.json``."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus import __version__
from hatbus.errors import HatbusError, SaveError
from hatbus.events.declare import hookimpl
from hatbus.insight.explanation import plan_of
from hatbus.log import log
from hatbus.parallel.launch import RANKS_FOLDER

if TYPE_CHECKING:
    from hatbus.jobs.jobrun import Prepared
    from hatbus.loop.context import Context
    from hatbus.trainer import Trainer

LOG_FILE: Final = "run.log"
JOB_FILE: Final = "job.json"
PLAN_FILE: Final = "plan.json"


class RunLog(logging.FileHandler):
    """Appends what the terminal says to a file; a disk that is full is no reason to end a run.

    Nothing is written before ``open``: a run that is refused leaves its folder as it is.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        file = log_file(folder, rank)
        super().__init__(file, encoding="utf-8", delay=True)
        self._own_folder = file.parent if rank else None
        self._kept: list[logging.LogRecord] | None = []
        self._beside = logging.Handler()
        self._beside.handle = self.handle  # type: ignore[method-assign]  # with a level of its own

    def open(self) -> None:
        """Writes what was said so far, and from now on at once.

        By now the user's code is there, and has said how other loggers are shown.
        """
        if self._own_folder is not None:
            with suppress(OSError):  # whoever needs it says so
                self._own_folder.mkdir(parents=True, exist_ok=True)
        root = logging.getLogger()
        shown = [h.level for h in root.handlers if getattr(h, "stream", None) in _terminals()]
        if shown:
            self._beside.setLevel(min(shown))
            root.addHandler(self._beside)
        kept, self._kept = self._kept, None
        for record in kept or ():
            self.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, or keeps it."""
        if self._kept is not None:
            self._kept.append(record)
            return
        with suppress(OSError):  # the folder cannot be written: whoever needs it says so
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Says nothing: the same record is on the terminal."""

    def close(self) -> None:
        """Closes the file, whatever becomes of what it could not take."""
        logging.getLogger().removeHandler(self._beside)
        with suppress(OSError):
            super().close()

    def say(self, level: int, text: str) -> None:
        """Writes a line that only the file gets: the terminal says it in its own way."""
        self.handle(logging.LogRecord("hatbus", level, "", 0, text, (), None))


def log_file(folder: Path, rank: int) -> Path:
    """The log of a process: ``run.log`` of the first, ``ranks/rank-1.log`` of the others."""
    return folder / RANKS_FOLDER / f"rank-{rank}.log" if rank else folder / LOG_FILE


@contextmanager
def logged(folder: Path, title: str, rank: int = 0) -> Iterator[RunLog]:
    """Appends what is said meanwhile, what began, and how it ended.

    That is hatbus's log, the user's own as far as the terminal shows it, and warnings; and what the
    caller adds with ``say``. The caller opens the log when there is a folder.
    """
    book = RunLog(folder, rank)
    book.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    with ExitStack() as stack:
        stack.callback(book.close)
        for part in (_hearing_log, _hearing_warnings, _hearing_last_resort):
            stack.enter_context(part(book))
        book.say(logging.INFO, f"{title} begins")
        try:
            yield book
        except SystemExit as left:
            book.say(logging.INFO, f"{title} ends with exit code {left.code}")
            raise
        except BaseException as error:
            _say_error(book, error, title)
            raise
        else:
            book.say(logging.INFO, f"{title} ends")


def _say_error(book: RunLog, error: BaseException, title: str) -> None:
    """A traceback where the terminal shows one, then what failed, and in which plugin and step."""
    if not isinstance(error, (HatbusError, KeyboardInterrupt)):
        book.say(logging.ERROR, "".join(traceback.format_exception(error)).rstrip())
    notes = "; ".join(getattr(error, "__notes__", ()))
    where = f" ({notes})" if notes else ""
    book.say(logging.ERROR, f"{title} fails: {type(error).__name__}: {error}{where}")


@contextmanager
def _hearing_log(book: RunLog) -> Iterator[None]:
    log.addHandler(book)
    try:
        yield
    finally:
        log.removeHandler(book)


@contextmanager
def _hearing_warnings(book: RunLog) -> Iterator[None]:
    """Python's warnings, as the terminal shows them."""
    shown = warnings.showwarning

    def show(*words: Any) -> None:
        message, category, name, number, file, line = (*words, None, None)[:6]
        shown(*words)
        if file is None:
            text = warnings.formatwarning(message, category, name, number, line)
            book.say(logging.WARNING, text.rstrip())

    warnings.showwarning = show  # type: ignore[assignment]  # Python hands them by position
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = shown


class _Both(logging.Handler):
    """Python's handler of last resort, and the file."""

    def __init__(self, first: logging.Handler, book: RunLog) -> None:
        super().__init__(first.level)
        self._both = (first, book)

    def handle(self, record: logging.LogRecord) -> bool:
        """Hands a record to both."""
        return all(handler.handle(record) for handler in self._both)


@contextmanager
def _hearing_last_resort(book: RunLog) -> Iterator[None]:
    """What loggers show that nobody has given a handler."""
    last = logging.lastResort
    if last is not None:
        logging.lastResort = _Both(last, book)
    try:
        yield
    finally:
        logging.lastResort = last


def _terminals() -> tuple[object, ...]:
    return sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__


class JobFiles:
    """Writes the resolved job and the plan of its events into the run's folder.

    That is when the loop begins, and not before: a resume that is refused must leave the folder's
    job as it is, or the next one would be refused for the same.
    """

    def __init__(self, prepared: Prepared, trainer: Trainer) -> None:
        job = prepared.job
        plugins = {name: found.source for name, found in prepared.found.items()}
        trainer.bus.set_tasks(trainer.ctx.data.tasks)
        plan = json.dumps(plan_of(trainer.bus).as_json()["events"], indent=2)
        self.run_dir = job.run_dir
        self.texts = {
            JOB_FILE: job.to_json(
                version=__version__, distributions=plugins, **job.origin_of_stage()
            ),
            PLAN_FILE: plan + "\n",
        }
        if trainer.ctx.rank == 0:
            with written_into(self.run_dir):
                self.run_dir.mkdir(parents=True, exist_ok=True)

    @hookimpl(wrapper=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Writes them, on rank 0.

        Raises:
            SaveError: the folder cannot be written.
        """
        with written_into(self.run_dir):
            for name, text in self.texts.items() if ctx.rank == 0 else ():
                partial = self.run_dir / f".{name}.{os.getpid()}"
                partial.write_text(text, "utf-8")
                partial.replace(self.run_dir / name)
        return (yield)


@contextmanager
def written_into(folder: Path) -> Iterator[None]:
    """Says what to do when the run's folder cannot be written.

    Raises:
        SaveError: it cannot.
    """
    try:
        yield
    except OSError as error:
        raise SaveError(
            f"cannot write into {str(folder)!r}: {error.strerror}; choose another run_dir"
        ) from error
