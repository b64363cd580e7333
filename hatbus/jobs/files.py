"""``job.json`` and ``plan.json`` in a run's folder."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from hatbus import __version__
from hatbus.errors import SaveError
from hatbus.events.declare import hookimpl
from hatbus.insight.explanation import plan_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from hatbus.jobs.jobrun import Prepared
    from hatbus.loop.context import Context
    from hatbus.trainer import Trainer

JOB_FILE: Final = "job.json"
PLAN_FILE: Final = "plan.json"


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
