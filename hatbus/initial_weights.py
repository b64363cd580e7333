"""Weights that a training starts from: ``Trainer(init_from=...)`` and ``[run] init_from``."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus import option_values
from hatbus.discovery.configs import TYPES, build
from hatbus.discovery.entries import entries_of
from hatbus.errors import JobError, PluginError
from hatbus.events.declare import hookimpl
from hatbus.parallel.modes.materialise import is_on_meta

if TYPE_CHECKING:
    from torch import nn

    from hatbus.jobs.job import Job
    from hatbus.loop.context import Context
    from hatbus.trainer import Trainer

_READER: Final = "InitFrom"
_HOME: Final = "hatbus-checkpoint"


def initialise(model: nn.Module, wanted: Any) -> None:
    """Gives a model the weights of a checkpoint or a file.

    Args:
        model: whose weights are replaced, in place.
        wanted: a path, or the options of ``hatbus_checkpoint.InitFrom`` as a mapping.

    Raises:
        JobError: it is neither.
        PluginError: an option that there is not, or hatbus-checkpoint is not installed.
        CheckpointError: there are no such weights, or they do not match.
    """
    options = dict(wanted) if isinstance(wanted, Mapping) else {"path": wanted}
    if "path" not in options:
        raise JobError(f"init_from is {wanted!r:.99}; accepted: a path, or a table with a path")
    options["path"] = option_values.path("init_from", options["path"])
    if not any(entry.name == _READER for entry in entries_of(TYPES)):
        raise PluginError(
            f"init_from reads with {_HOME}, which is not installed: python -m pip install {_HOME}"
        )
    build({"type": _READER, **options}, "init_from")(model)


def begin_with(trainer: Trainer, job: Job, started_in: Path) -> None:
    """Gives the model its first weights; where a resume is wanted, once it is known of none.

    Args:
        trainer: of the job.
        job: what is to be run.
        started_in: the folder in which relative paths start.
    """
    resumes = [job.run.resume, *(p.options.get("resume") for p in job.enabled.values())]
    start_from(trainer, job.run.init_from, started_in, later=any(resumes))


def start_from(trainer: Trainer, wanted: Any, started_in: Path, *, later: bool = False) -> None:
    """Gives the model its first weights.

    Args:
        trainer: of the model.
        wanted: as for ``initialise``; None: nothing.
        started_in: the folder in which relative paths start.
        later: when the loop begins; so too where the model has no memory before that.
    """
    if wanted is None:
        return
    if later or is_on_meta(trainer.ctx.model):
        first = FirstWeights(wanted, started_in)
        trainer.bus.register(first, "core.first_weights", core=True)
        return
    with chdir(started_in):
        initialise(trainer.ctx.model, wanted)


class FirstWeights:
    """Gives a run its first weights when the loop begins, unless a checkpoint was resumed.

    So the source need not be there any more when the run is resumed.

    Args:
        wanted: as for ``initialise``.
        started_in: the folder in which a relative path starts.
    """

    def __init__(self, wanted: Any, started_in: Path) -> None:
        table = dict(wanted) if isinstance(wanted, Mapping) else {"path": wanted}
        if isinstance(table.get("path"), str):
            table["path"] = started_in / Path(table["path"]).expanduser()
        self.wanted = table

    @hookimpl(wrapper=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Loads them before the first step."""
        if ctx.position.global_step == 0:
            initialise(ctx.model, self.wanted)
        return (yield)
