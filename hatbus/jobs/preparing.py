"""A job file, or a stage of a HAT config, made ready to be built. Imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import JobError
from hatbus.jobs import hat_stage, jobrun

if TYPE_CHECKING:
    from hatbus.jobs.jobrun import Prepared


def prepare(
    path: Path | str,
    plugins: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    stage: str | None = None,
) -> Prepared:
    """Reads and checks a job, or executes a config of HAT's (``.py``) and takes a stage of it.

    Args:
        path: of the file.
        plugins: as for ``hatbus.jobs.read_job``.
        options: the same.
        stage: name of the stage; None in a job.

    Raises:
        JobError: every problem, one line each.
    """
    if Path(path).suffix == ".py":
        return hat_stage.prepare_stage(path, stage, plugins, options)
    if stage is not None:
        raise JobError(f"--stage {stage} is for a config of HAT's (.py), and {path} is a job")
    return jobrun.prepare(path, plugins, options)
