"""Which checkpoint a command means by a run, a checkpoint or a job, and which job it is of."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus.errors import CheckpointError, JobError, did_you_mean
from hatbus.jobs import read_job
from hatbus.option_values import path as path_value
from hatbus.option_values import short
from hatbus.runs import run_folder
from hatbus_checkpoint import listing, manifest
from hatbus_checkpoint.folder import (
    JOB_FILE,
    CheckpointFolder,
    Entry,
    is_mark,
    newest_run,
    save_dir_in,
)

if TYPE_CHECKING:
    from hatbus.jobs import Job

_ABOVE: Final = 3
"""Folders above a checkpoint in which its run's job may be: ``run/checkpoint/<name>``."""


class Target(NamedTuple):
    """A checkpoint that is wanted, and the job that builds what it is of.

    Attributes:
        job: file of the job.
        place: a checkpoint, or the folder of some.
        name: of one in there, or ``"best"`` or ``"last"``; None: the newest good one.
        prefix: of the names there.
    """

    job: Path
    place: Path
    name: str | None
    prefix: str

    def look(self) -> Entry | None:
        """The checkpoint as far as it can be found without reading it; None: one of several.

        Raises:
            CheckpointError: there is none.
        """
        folder = CheckpointFolder(self.place, self.prefix)
        if self.name is None and not (self.place / manifest.NAME).exists():
            if not folder.entries():
                raise CheckpointError(f"no checkpoint in {_shown(self.place)}; was it trained yet?")
            return None
        pointed = folder.pointed(str(self.name)) if is_mark(self.name) else ""
        return listing.one_of(self.place, pointed or self.name)

    def entry(self) -> Entry:
        """The checkpoint, verified; a damaged one is passed over where none was named.

        Raises:
            CheckpointError: there is none, or it cannot be used.
        """
        found = self.look()
        if found is None:
            good = CheckpointFolder(self.place, self.prefix).latest()
            if good is None:
                raise CheckpointError(f"the checkpoints in {_shown(self.place)} are gone meanwhile")
            return good
        fault = listing.fault_of(found)
        if fault:
            raise CheckpointError(f"checkpoint {found.path.name!r} cannot be used: {fault}")
        return found


def target_of(
    given: str, name: str | None, plugins: tuple[str, ...], options: tuple[str, ...]
) -> Target:
    """What a word on the command line means.

    Args:
        given: a run's folder, or one with runs (the newest is taken); a checkpoint, or a folder of
            some; any of the two and ``/best`` or ``/last``; or a job file, for its newest run.
        name: of a checkpoint there, ``"best"`` or ``"last"``; None: the newest good one.
        plugins: ``-p``, as for ``hatbus.jobs.read_job``.
        options: ``-o``, likewise.

    Raises:
        JobError: it is none of these, or the job cannot be used.
        CheckpointError: there are several folders of checkpoints.
    """
    path = run_folder(path_value("TARGET", given))
    if is_mark(path.name) and not path.exists():
        path, name = path.parent, name or path.name
    if path.is_file():
        job = read_job(path, plugins, options)
        place = job.run_dir if job.run.name else job.place
        run = path.parent if path.name == JOB_FILE else newest_run(place)
        return _of_run(path, job, run or place, name)
    if not path.is_dir():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, [n for n in near if not n.startswith(".")])
        raise JobError(f"no run, checkpoint or job {given!r}{hint}")
    run = newest_run(path)
    if run is None:
        return _of_checkpoints(path, name, plugins, options)
    file = run / JOB_FILE
    return _of_run(file, read_job(file, plugins, options), run, name)


def _of_checkpoints(
    path: Path, name: str | None, plugins: tuple[str, ...], options: tuple[str, ...]
) -> Target:
    """A checkpoint, or a folder of some, and the job of the run that it lies in.

    Raises:
        JobError: there is none above it.
    """
    above = [p / JOB_FILE for p in [*path.parents][:_ABOVE]]
    file = next((p for p in above if p.is_file()), above[0])
    if not file.is_file():
        raise JobError(
            f"no {JOB_FILE} in {_shown(path)} or above it, so nobody knows how to build its model; "
            "give the folder of a run, or a job file"
        )
    job = _whole(file, read_job(file, plugins, options))
    prefix = path.name.partition("checkpoint-")[0] if (path / manifest.NAME).exists() else None
    return Target(file, path, name, _prefix(job) if prefix is None else prefix)


def _of_run(file: Path, job: Job, run: Path, name: str | None) -> Target:
    """The checkpoints of a run, where its job says that they are."""
    _whole(file, job)
    instance = next((n for n, p in job.enabled.items() if p.use == "checkpoint"), None)
    if instance is None:
        raise JobError(f"{job.name} has no plugin 'checkpoint', so nothing was saved of its runs")
    given = job.plugins[instance].options.get("save_dir")
    place = path_value("save_dir", given) if given else run / instance
    if not given and not place.is_dir() and run.is_dir():
        place = save_dir_in(run)  # a run of another job file, or of another instance name
    return Target(file, place, name, _prefix(job))


def _prefix(job: Job) -> str:
    """What the names of a job's checkpoints begin with."""
    tables = [p.options for p in job.enabled.values() if p.use == "checkpoint"]
    return str(tables[0].get("name_prefix") or "") if tables else ""


def _whole(file: Path, job: Job) -> Job:
    """The job, if its file holds all of it.

    Raises:
        JobError: it is a stage of a config, of which the file holds a part.
    """
    about: Any = {}
    if file.name == JOB_FILE:
        with suppress(OSError, ValueError):
            about = json.loads(file.read_text("utf-8")).get("hatbus", {})
    if about.get("config"):
        raise JobError(
            f"the run in {_shown(file.parent)} is stage {about['stage']} of {about['config']}, "
            f"whose {JOB_FILE} cannot build it; in Python: the stage's trainer, "
            "Checkpoint.load(path) and trainer.validate()"
        )
    return job


def _shown(path: Path) -> str:
    return repr(str(short(path)))
