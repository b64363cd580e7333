"""``MLflow``: delivers a run to an MLflow server or store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hatbus import option_values
from hatbus.errors import JobError
from hatbus.tracking import Service, Tracker, client_module, refuse_credentials


class MLflow(Tracker):
    """Delivers settings, metrics, images and texts to MLflow.

    What the run publishes is kept in its folder first, and delivered from there by a thread. Its
    step is ``global_step_id``. A resumed run goes on in the same run of MLflow; a point that was
    delivered before a kill is not delivered again. When MLflow does not answer, the training goes
    on and the points wait. Nothing is published from other ranks than the first.

    User and password belong into ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``, a
    token into ``MLFLOW_TRACKING_TOKEN``, since options are kept in the run's files.

    Args:
        tracking_uri: of the server (``"http://host:5000"``) or store (``"sqlite:///runs.db"``); by
            default what ``MLFLOW_TRACKING_URI`` says, else MLflow's own.
        experiment: of MLflow; it is made where there is none.
        name: of the run; by default that of its folder.
        tags: name to text.
        save_dir: folder of its files; by default in the run's, named like the instance.
        config: settings to show beside those of the job, as parameters.
        describe: deliver the plan of the run's events, as the file ``plan.txt``.
        live: deliver at once; else only what is behind a checkpoint, and the rest at the end.
        checkpoints: deliver them as artifacts: none, the last or best one when the run is over, or
            all when they are made.

    Raises:
        JobError: a value that cannot be used.
    """

    plugin_name = "mlflow"

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "hatbus",
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
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
        option_values.text("mlflow: experiment", experiment)
        for uri in self.given_texts(tracking_uri=tracking_uri).values():
            refuse_credentials(
                "mlflow: tracking_uri",
                uri,
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole address into "
                "MLFLOW_TRACKING_URI",
            )
        if tags is not None and not isinstance(tags, Mapping):
            raise JobError(f"mlflow: tags is {tags!r:.80}; accepted: a table of texts")
        self._uri, self._experiment = tracking_uri, experiment
        self._tags = {str(key): str(value) for key, value in (tags or {}).items()}
        self.options = {"tracking_uri": tracking_uri, "experiment": experiment, "tags": self._tags}

    def connect(self) -> Service:
        """The client.

        Raises:
            JobError: the package is missing.
        """
        client_module("mlflow", "hatbus-mlflow")
        from hatbus_mlflow.mlflow_run import MLflowRun

        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI")
        return MLflowRun(uri, self._experiment, self._tags)
