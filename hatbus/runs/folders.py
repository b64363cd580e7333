"""Which folder a run writes to: a new one in its place, or that of the run that it goes on with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from hatbus.errors import JobError, SaveError
from hatbus.log import log
from hatbus.option_values import short
from hatbus.runs.lock import FileLock
from hatbus.runs.summary import LOCK_FILE, SUMMARY_FILE, Summary, read_summary

LATEST: Final = "latest"
"""A file with the name of the newest run of a place. No link: TensorBoard would show it twice."""
NEW: Final = "new"
SAME: Final = ("auto", "last", "best")
"""What ``resume`` is when the run goes on in the folder of an earlier one."""
_ONLY_HOW_LONG: Final = ("run.num_epochs", "run.num_steps", "run.device")
_ONLY_HOW: Final = ("override", "drop_plugin_state")


@dataclass(frozen=True)
class Wanted:
    """Where a run is to write.

    Attributes:
        place: the folder that runs get folders in.
        name: of the folder; empty: from the time.
        resume: as in ``[run]``; None: a new run.
        job: file or script, absolute.
        changes: as in ``Summary``.
        folder: a run's own, to go on in whatever else is said.
    """

    place: Path
    name: str = ""
    resume: str | None = None
    job: str = ""
    changes: tuple[str, ...] = ()
    folder: Path | None = None


def is_folder_name(name: object) -> bool:
    """Whether a run's folder may have it: below its place, in sight, and not ``latest``."""
    if not isinstance(name, str):
        return False
    return bool(name) and Path(name).name == name and name[0] != "." and name != LATEST


class RunFolder:
    """The folder of one run, held while the run is on.

    Attributes:
        path: of the folder.
        wanted: why it is this one.
    """

    def __init__(self, path: Path, wanted: Wanted, lock: FileLock | None = None) -> None:
        self.path, self.wanted = path, wanted
        self._lock = lock

    def hold(self) -> None:
        """Takes the lock again, for another ``fit``.

        Raises:
            JobError: another run is in the folder.
        """
        if self._lock is None:
            self._lock = lock_of(self.path)

    def release(self) -> None:
        """Gives the folder free; one that nothing was written into is removed."""
        if self._lock is None:
            return
        with suppress(OSError):
            if not any(p.name != LOCK_FILE for p in self.path.iterdir()):
                (self.path / LOCK_FILE).unlink()
                self.path.rmdir()
        self._lock.release()
        self._lock = None

    def is_latest(self) -> None:
        """Lets ``latest`` in the place say that this is the newest."""
        file, partial = self.path.with_name(LATEST), self.path.with_name(f".{LATEST}.{os.getpid()}")
        try:
            partial.write_text(self.path.name + "\n", "utf-8")
            partial.replace(file)
        except OSError as error:
            log.warning("cannot write %r: %s", str(short(file)), error.strerror)


def run_folder(path: Path) -> Path:
    """The run that a path means: of ``latest``, and of a folder with runs, the newest.

    Args:
        path: of a run's folder, of ``latest`` beside some, or of the folder that they are in.

    Returns:
        The path itself where it is neither of the last two.
    """
    link = path if path.name == LATEST else path / LATEST
    with suppress(OSError, ValueError):
        newest = link.with_name(link.read_text("utf-8").strip())
        if newest.is_dir() and not (path / SUMMARY_FILE).is_file():
            return newest
    return path


def claim(wanted: Wanted) -> RunFolder:
    """Finds or makes the folder of a run that begins; for the first of its processes.

    Raises:
        JobError: the folder is another run's, or there is nothing to go on with.
        SaveError: the place cannot be written.
    """
    with _written(wanted.place):
        if wanted.folder is not None:
            return RunFolder(wanted.folder, wanted, lock_of(wanted.folder))
        if wanted.name:
            return _named(wanted)
        if wanted.resume in SAME:
            found = newest_own(wanted)
            if found is not None:
                return RunFolder(found, wanted, lock_of(found))
        wanted.place.mkdir(parents=True, exist_ok=True)
        start = time.strftime("%Y-%m-%d_%H-%M-%S")
        for number in count(1):
            path = wanted.place / (f"{start}-{number:02}" if number > 1 else start)
            with suppress(FileExistsError):
                path.mkdir()
                return RunFolder(path, wanted, lock_of(path))
    raise AssertionError


def newest_own(wanted: Wanted) -> Path | None:
    """The newest run that the same command made.

    Raises:
        JobError: there is none, and a mark in its checkpoints is wanted.
    """
    found = sorted(runs_of(wanted.place), key=lambda run: (run[1].started, run[0].name))
    own = [path for path, summary in found if _is_own(summary, wanted)]
    if own:
        return own[-1]
    where = f"no earlier run of this job, so changed, in {str(short(wanted.place))!r}"
    there = f"; the newest there is {str(short(found[-1][0]))!r}" if found else ""
    if wanted.resume != "auto":
        raise JobError(f"resume is {wanted.resume!r}, and there is {where}{there}")
    if found:
        there += f", which `hatbus resume {short(found[-1][0])}` goes on with"
    log.info("%s; starting anew%s", where, there)
    return None


def runs_of(place: Path) -> Iterator[tuple[Path, Summary]]:
    """The runs in a place."""
    with suppress(OSError):
        for path in place.iterdir():
            summary = None if path.is_symlink() else read_summary(path)
            if summary is not None:
                yield path, summary


def lock_of(folder: Path) -> FileLock:
    """Holds a run's folder.

    Raises:
        JobError: another run holds it.
    """
    try:
        return FileLock(folder / LOCK_FILE)
    except BlockingIOError as error:
        raise JobError(
            f"the run in {str(short(folder))!r} is still going on ({error}); wait for it, stop it, "
            "or begin another with resume = 'new'"
        ) from error


def _named(wanted: Wanted) -> RunFolder:
    """The folder of a fixed name."""
    path = wanted.place / wanted.name
    path.mkdir(parents=True, exist_ok=True)
    lock = lock_of(path)
    if wanted.resume in SAME or not any(p.name != LOCK_FILE for p in path.iterdir()):
        return RunFolder(path, wanted, lock)
    if wanted.resume != NEW:
        lock.release()
        raise JobError(
            f"there is a run in {str(short(path))!r} already; go on with it (resume = 'auto'), "
            "move it aside and start over (resume = 'new'), or choose another run name"
        )
    aside = _free(path.with_name(f"{path.name}-until-{time.strftime('%Y-%m-%d_%H-%M-%S')}"))
    path.rename(aside)
    log.info("moved the earlier run aside: %s", short(aside))
    path.mkdir()
    lock.release()
    return RunFolder(path, wanted, lock_of(path))


def _free(path: Path) -> Path:
    names = (path if n == 1 else path.with_name(f"{path.name}-{n:02}") for n in count(1))
    return next(one for one in names if not one.exists())


def _is_own(summary: Summary, wanted: Wanted) -> bool:
    if summary.job != wanted.job or summary.name:
        return False
    return _what_trains(summary.changes) == _what_trains(wanted.changes)


def _what_trains(changes: list[str] | tuple[str, ...]) -> dict[str, str]:
    """The changes, the last of each key, without those that make no other run of it."""
    found: dict[str, str] = {}
    for change in changes:
        key, _, value = change.partition("=")
        plain = key.removeprefix("-o ").strip()
        if plain not in _ONLY_HOW_LONG and plain.rpartition(".")[2] not in _ONLY_HOW:
            found[key] = value.strip()
    return found


@contextmanager
def _written(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise SaveError(
            f"cannot write into {str(place)!r}: {why}; choose another run_dir"
        ) from error
