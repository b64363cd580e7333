"""``Wandb``: delivers a run to Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from hatbus import option_values
from hatbus.errors import JobError
from hatbus.tracking import Service, Tracker, client_module

MODES: Final = ("online", "offline")


class Wandb(Tracker):
    """Delivers settings, metrics, images, texts and histograms to Weights & Biases.

    What the run publishes is kept in its folder first, and delivered from there by a thread. Its
    step is ``global_step_id``. A resumed run goes on in the same run of wandb; a point that was
    delivered before a kill is not delivered again. When wandb does not answer, the training goes
    on and the points wait. Nothing is published from other ranks than the first.

    Log in with ``wandb login`` or ``WANDB_API_KEY``. There is no option for a key: options are kept
    in the run's files.

    Args:
        project: of wandb.
        entity: user or team; by default yours.
        name: of the run; by default that of its folder.
        group, job_type, notes: as in ``wandb.init``.
        tags: as in ``wandb.init``.
        mode: ``"online"``, or ``"offline"``: into files, for ``wandb sync``; by default what
            ``WANDB_MODE`` says, else online.
        save_dir: folder of its files; by default in the run's, named like the instance.
        config: settings to show beside those of the job.
        describe: deliver the plan of the run's events, as the file ``plan.txt``.
        live: deliver at once; else only what is behind a checkpoint, and the rest at the end.
        checkpoints: deliver them as artifacts: none, the last or best one when the run is over, or
            all when they are made.

    Raises:
        JobError: a value that cannot be used.
    """

    plugin_name = "wandb"

    def __init__(
        self,
        project: str = "hatbus",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] = (),
        mode: Literal["online", "offline"] | None = None,
        save_dir: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        describe: bool = True,
        live: bool = True,
        checkpoints: Literal["none", "last", "best", "all"] = "none",
    ) -> None:
        super().__init__(
            name, save_dir, config, describe=describe, live=live, checkpoints=checkpoints
        )
        option_values.text("wandb: project", project)
        words = self.given_texts(entity=entity, group=group, job_type=job_type, notes=notes)
        if isinstance(tags, str):
            raise JobError(f"wandb: tags is {tags!r}; accepted: a list of names")
        for tag in tags:
            option_values.text("wandb: tags", tag)
        if mode is not None:
            option_values.one_of("wandb: mode", mode, MODES)
        self._mode = mode
        self._init = {"project": project, "tags": list(tags) or None, **words}
        self.options = {
            "project": project,
            "tags": list(tags),
            "mode": mode,
            **words,
        }

    def connect(self) -> Service:
        """The client; online, somebody has to be logged in.

        Raises:
            JobError: the package is missing, or nobody is logged in.
        """
        client = client_module("wandb", "hatbus-wandb")
        from hatbus_wandb.wandb_run import WandbRun

        mode = self._mode or os.environ.get("WANDB_MODE") or "online"
        if mode not in MODES:
            mode = "offline"
        if mode == "online" and not client.login(prompt=False, verify=False):
            raise JobError(
                "wandb: nobody is logged in; wandb login, or the environment variable "
                "WANDB_API_KEY, does that, and mode = 'offline' needs no login"
            )
        return WandbRun(client, mode, self._init)
