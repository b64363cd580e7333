"""A run of MLflow, through its client."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from hatbus.errors import JobError
from hatbus.log import log
from hatbus.tracking import Described, Row, Service

ID: Final = "hatbus.id"
_METRICS: Final = 1000
_PARAMETERS: Final = 100
_LONGEST: Final = 6000
"""Metrics and parameters of one request, and letters of a value, that MLflow takes."""
_STATES: Final = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_REFUSALS: Final = ("UNAUTHENTICATED", "PERMISSION_DENIED")
_INVALID: Final = "INVALID_PARAMETER_VALUE"
_PATIENCE: Final = 5.0
_SQLITE: Final = re.compile(r"sqlite(\+\w+)?:///(?P<path>[^?]+)")


class MLflowRun(Service):
    """Points with the time of their first delivery: MLflow keeps equal ones once.

    Args:
        uri: of the server or store; None: MLflow's own.
        experiment: its name.
        tags: of the run.
    """

    def __init__(self, uri: str | None, experiment: str, tags: Mapping[str, str]) -> None:
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._uri: str = self._client.tracking_uri
        self._experiment, self._tags = experiment, tags
        self._id = self._experiment_id = ""
        self._warned: set[str] = set()

    def open(self, run: Described) -> int | None:
        """Finds the run by its tag, or makes it.

        Raises:
            JobError: the server refuses the login.
        """
        self._reach()
        try:
            self._experiment_id = self._experiment_of_that_name()
            self._id = self._run_of(run)
        except MlflowException as error:
            if error.error_code in _REFUSALS or "status code 401" in str(error):
                raise JobError(
                    "mlflow: the server refuses the login; MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, are what it is asked with"
                ) from error
            raise
        self._send_settings(run.config)
        if run.plan:
            self._client.log_text(self._id, run.plan, "plan.txt")
        return None

    def send(self, rows: Sequence[Row]) -> None:
        """Metrics in few requests, then the files."""
        self._reach()
        metrics = [
            Metric(plain_name(name), value, int(row.time * 1000), row.step)
            for row in rows
            for name, value in row.scalars.items()
        ]
        for start in range(0, len(metrics), _METRICS):
            self._send_metrics(metrics[start : start + _METRICS])
        for row in rows:
            self._send_files(row)

    def close(self, how: str, seconds: float) -> None:
        """Says how it ended, and lets go of a database that the client has opened."""
        self._client.set_terminated(self._id, _STATES[how])
        store = getattr(getattr(self._client, "_tracking_client", None), "store", None)
        engine = getattr(store, "engine", None)
        if engine is not None:
            engine.dispose()

    def where(self) -> str:
        """The address of its page, or the command that shows it."""
        if self._uri.startswith("http"):
            return f"{self._uri}/#/experiments/{self._experiment_id}/runs/{self._id}"
        return f"mlflow ui --backend-store-uri {self._uri}"

    def _experiment_of_that_name(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            place = artifacts_beside(self._uri)
            made = self._client.create_experiment(self._experiment, artifact_location=place)
            return str(made)
        except MlflowException:  # another run was faster
            return str(self._client.get_experiment_by_name(self._experiment).experiment_id)

    def _run_of(self, run: Described) -> str:
        own = f"tags.`{ID}` = '{run.id}'"
        found = self._client.search_runs([self._experiment_id], own, max_results=1)
        if found:
            known = str(found[0].info.run_id)
            self._client.update_run(known, status="RUNNING")
            return known
        tags = {**self._tags, ID: run.id}
        made = self._client.create_run(self._experiment_id, tags=tags, run_name=run.name)
        return str(made.info.run_id)

    def _send_settings(self, config: Mapping[str, Any]) -> None:
        """Those that it has not; MLflow changes none."""
        known = self._client.get_run(self._id).data.params
        found = [
            Param(plain_name(name), str(value)[:_LONGEST])
            for name, value in flat(config)
            if plain_name(name) not in known
        ]
        for start in range(0, len(found), _PARAMETERS):
            self._client.log_batch(self._id, params=found[start : start + _PARAMETERS])

    def _send_metrics(self, metrics: list[Any]) -> None:
        try:
            self._client.log_batch(self._id, metrics=metrics)
        except MlflowException as error:
            if error.error_code != _INVALID:
                raise
            if len(metrics) == 1:
                self._leave_out(metrics[0].key, error)
                return
            half = len(metrics) // 2
            self._send_metrics(metrics[:half])
            self._send_metrics(metrics[half:])

    def _leave_out(self, name: str, error: Exception) -> None:
        if name not in self._warned:
            self._warned.add(name)
            log.warning("mlflow takes no %r, which is left out: %s", name, str(error)[:200])

    def _send_files(self, row: Row) -> None:
        for name, text in row.texts.items():
            place = f"texts/{plain_name(name)}/step_{row.step:08d}.txt"
            self._client.log_text(self._id, text, place)
        for name, file in row.images.items():
            if file.exists() and not self._has_image(name, row):
                from PIL import Image

                time = int(row.time * 1000)
                with Image.open(file) as image:
                    self._client.log_image(
                        self._id,
                        image.convert("RGBA" if image.mode == "RGBA" else "RGB"),
                        key=plain_name(name),
                        step=row.step,
                        timestamp=time,
                        synchronous=True,
                    )
        for path in row.checkpoints:
            if path.is_dir():
                self._client.log_artifacts(self._id, str(path), f"checkpoints/{path.name}")
            elif path.exists():
                self._client.log_artifact(self._id, str(path), "checkpoints")

    def _has_image(self, name: str, row: Row) -> bool:
        """Whether it arrived before a kill; the client names each file anew."""
        mark = f"step+{row.step}+timestamp+{int(row.time * 1000)}+".replace("+", "")
        begin = plain_name(name).replace("/", "#")
        for found in self._client.list_artifacts(self._id, "images"):
            file = found.path.rpartition("/")[2]
            if file.startswith(begin) and mark in re.sub(r"[+%]", "", file):
                return True
        return False

    def _reach(self) -> None:
        """Raises soon where nobody listens: the client itself tries for minutes.

        Raises:
            OSError: nobody does.
        """
        parts = urlsplit(self._uri)
        proxies = {"http_proxy", "https_proxy", "all_proxy"} & {name.lower() for name in os.environ}
        if parts.scheme in ("http", "https") and parts.hostname and not proxies:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname, port), _PATIENCE).close()


def artifacts_beside(uri: str) -> str | None:
    """Where files of a new experiment belong: beside a database that is a file.

    MLflow itself would put them into the working directory, whichever that is just now.

    Args:
        uri: of the server or store.

    Returns:
        A ``file:`` address; None where the server, or MLflow, knows.
    """
    found = _SQLITE.match(uri)
    if found is None or found["path"] == ":memory:":
        return None
    return (Path(found["path"]).resolve().parent / "mlartifacts").as_uri()


def plain_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_ - . : /``, no empty part of a path."""
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables with their names joined by dots."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
