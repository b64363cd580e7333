"""MLflow: what its own client reads back, from SQLite and from a server on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tracker_runs import (
    ENDS,
    NUMBERS,
    STEPS,
    differences,
    example_of,
    holds,
    killed_and_resumed,
    trained,
)

from hatbus import Trainer
from hatbus.errors import JobError
from hatbus.testing import PluginContract
from hatbus_mlflow.mlflow import MLflow

with_client = pytest.mark.skipif(
    find_spec("mlflow") is None or find_spec("sqlalchemy") is None,
    reason="mlflow with a store is not installed",
)
with_checkpoints = pytest.mark.skipif(
    find_spec("hatbus_checkpoint") is None, reason="hatbus-checkpoint is not installed"
)


def trainer(tracker: MLflow, folder: Path) -> Trainer:
    model = torch.nn.Linear(2, 1)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [(torch.ones(4, 2), torch.zeros(4, 1))] * 5,
        torch.nn.functional.mse_loss,
        [tracker],
        run_dir=folder,
        run_name="one",
    )


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """MLflow's server on a port of this machine."""
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def read(uri: str) -> tuple[Any, Any, dict[str, list[int]]]:
    """Client, the only run, and the steps of every metric."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("hatbus")
    (run,) = client.search_runs([experiment.experiment_id])
    steps = {
        name: [point.step for point in client.get_metric_history(run.info.run_id, name)]
        for name in NUMBERS
    }
    return client, run, steps


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed")
def test_a_missing_client_is_one_line_that_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"'mlflow', which is not installed; python -m pip install"):
        trainer(MLflow(), tmp_path).fit(num_epochs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"experiment": ""}, "mlflow: experiment is ''"),
        ({"tags": "first"}, "mlflow: tags is 'first'; accepted: a table"),
        ({"tracking_uri": "http://me:hunter2@host"}, "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said) as refused:
        MLflow(**options)
    assert "hunter2" not in str(refused.value)


@with_client
@with_checkpoints
def test_kills_leave_no_point_out_or_twice_in_sqlite(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/runs.db"
    killed_and_resumed("mlflow", {"tracking_uri": uri, "checkpoints": "all"}, tmp_path)
    client, run, steps = read(uri)
    assert differences(steps) == []
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "one"
    assert run.data.params["optimizer.lr"] == "0.05"
    points = client.get_metric_history(run.info.run_id, "n")
    assert sorted((point.step, point.value) for point in points) == [(n, n) for n in STEPS]
    folders = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert folders == {"checkpoints", "images", "plan.txt", "texts"}
    pictures = [one.path for one in client.list_artifacts(run.info.run_id, "images")]
    assert len([path for path in pictures if path.endswith(".png")]) == len(ENDS)
    assert (tmp_path / "mlartifacts" / run.info.run_id / "artifacts/plan.txt").exists()
    assert not (tmp_path / "mlruns").exists()  # the working directory of the run
    notes = [one.path for one in client.list_artifacts(run.info.run_id, "texts/note")]
    assert notes == [f"texts/note/step_{step:08d}.txt" for step in ENDS]


@with_client
@with_checkpoints
def test_a_server_gets_everything_once_although_it_and_the_run_are_killed(tmp_path: Path) -> None:
    port = free_port()
    options = {"tracking_uri": f"http://127.0.0.1:{port}"}
    with server(tmp_path, port):
        trained("mlflow", options, tmp_path, 57)
    said = trained("mlflow", options, tmp_path)
    assert said.count("does not take points") == 1
    assert "points have not been delivered" in said
    with server(tmp_path, port) as uri:
        words = ["-m", "hatbus", "deliver", str(tmp_path / "runs")]
        command = [sys.executable, "-W", "ignore", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        _, run, steps = read(uri)
        assert differences(steps) == []
        assert run.info.status == "FINISHED"


@with_client
@with_checkpoints
def test_a_password_in_the_environment_is_in_no_file_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter22@127.0.0.1:{free_port()}")
    said = trained("mlflow", {}, tmp_path)
    assert "does not take points" in said
    assert "hunter22" not in said
    assert holds(tmp_path, "hunter22") == []


@with_client
def test_files_go_beside_a_database_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hatbus_mlflow.mlflow_run import artifacts_beside

    monkeypatch.chdir(tmp_path)
    beside = (tmp_path / "mlartifacts").as_uri()
    assert artifacts_beside("sqlite:///runs.db") == beside
    assert artifacts_beside(f"sqlite+pysqlite:///{tmp_path}/runs.db?timeout=3") == beside
    assert artifacts_beside("sqlite:///:memory:") is None
    assert artifacts_beside("http://127.0.0.1:5000") is None


@with_client
def test_names_that_mlflow_refuses_are_changed(tmp_path: Path) -> None:
    from hatbus_mlflow.mlflow_run import plain_name

    assert plain_name("val/map@0.5 (large)") == "val/map_0.5 _large_"
    assert plain_name("../a//b") == "a/b"


@with_client
def test_the_example_of_the_page_trains(tmp_path: Path) -> None:
    example_of("mlflow", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"runs.db", "mlartifacts"}
    assert not (tmp_path / "mlruns").exists()


@with_client
class TestMlflow(PluginContract):
    """The contract of every plugin."""

    observer = True

    @pytest.fixture(scope="class")
    def empty(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A database with MLflow's tables, which takes long to make."""
        from mlflow import MlflowClient

        path = tmp_path_factory.mktemp("empty") / "runs.db"
        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
        return path

    @pytest.fixture(autouse=True)
    def with_tables(self, empty: Path) -> None:
        self.empty_database = empty

    def database(self) -> str:
        path = self.folder / "runs.db"
        if not path.exists():
            shutil.copy(self.empty_database, path)
        return f"sqlite:///{path}"

    def make(self) -> object:
        return MLflow(self.database())

    def make_another(self) -> object:
        return MLflow(self.database(), save_dir=self.folder / "another")
