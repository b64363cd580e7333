"""TensorBoard's own server, asked over HTTP what it shows of a real run."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from hatbus import Context, hookimpl
from hatbus_tensorboard.records import record
from hatbus_tensorboard.tensorboard import TensorBoard

sys.path.insert(0, str(Path(__file__).parent))
from boards import KILLED, Heads, Logs, Resumes, batches, trainer

sys.path.pop(0)


@contextmanager
def serving(folder: Path, runs: int, *options: str) -> Iterator[str]:
    """A real TensorBoard server on a folder, once it has read it; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", str(port), "--host", "127.0.0.1", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/data/plugin"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not _has_read(url, runs):
            time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _has_read(url: str, count: int) -> bool:
    """Whether every run has its last curve: the server reads while it answers."""
    try:
        runs = asked(f"{url}/scalars/tags")
    except OSError:
        return False
    return len(runs) == count and all("lr" in tags for tags in runs.values())


def asked(url: str, data: bytes | None = None, **query: str) -> Any:
    address = f"{url}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def killed_and_resumed_twice(folder: Path) -> None:
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, tests, str(folder)]
    assert subprocess.run(command, check=False).returncode == -9  # steps 0 to 6 are there
    trainer(TensorBoard(str(folder)), Logs(), Resumes(1, 1)).fit(num_steps=9)
    trainer(TensorBoard(str(folder)), Logs(), Resumes(1, 3)).fit(num_epochs=3)


def resumed_after_a_version_that_wrote_no_start(folder: Path) -> None:
    trainer(TensorBoard(str(folder), describe=False), Logs()).fit(num_steps=8)
    (old,) = folder.iterdir()
    events = [one for one in EventFileLoader(str(old)).Load() if not one.HasField("session_log")]
    old.write_bytes(b"".join(record(one.SerializeToString()) for one in events))
    trainer(TensorBoard(str(folder)), Logs(), Resumes(1, 1)).fit(num_epochs=3)


def anew_in_an_old_folder(folder: Path) -> None:
    trainer(TensorBoard(str(folder)), Logs()).fit(num_steps=16)
    trainer(TensorBoard(str(folder)), Logs()).fit(num_steps=12)


CASES = (
    killed_and_resumed_twice,
    resumed_after_a_version_that_wrote_no_start,
    anew_in_an_old_folder,
)
ARGUMENTS = ("lr", "width", "depth")


@pytest.fixture(scope="module", params=["true", "false"], ids=["server", "python"])
def both(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    """Each of TensorBoard's two readers; ``--load_fast=true``, a process of its own, is default."""
    folder = tmp_path_factory.mktemp("tb")
    for case in CASES:
        case(folder / case.__name__)
    for number, name in enumerate(ARGUMENTS):
        run = trainer(TensorBoard(str(folder / name)), Logs())
        run.ctx.storage["job"] = {"run": {"args": {name: number}}}
        run.fit(num_epochs=1)
    with serving(folder, len(CASES) + len(ARGUMENTS), f"--load_fast={request.param}") as url:
        yield url


@pytest.mark.parametrize("case", CASES)
def test_both_readers_show_every_step_once(both: str, case: Any) -> None:
    found = {
        tag: [step for _, step, _ in asked(f"{both}/scalars/scalars", run=case.__name__, tag=tag)]
        for tag in ("loss", "lr")
    }
    assert found == {"loss": list(range(12)), "lr": [3, 7, 11]}


def test_the_table_of_hyperparameters_has_the_columns_of_every_run(both: str) -> None:
    shown = asked(f"{both}/hparams/experiment", json.dumps({"experimentName": ""}).encode())
    names = {info["name"] for info in shown["hparamInfos"]}
    assert {f"args.{name}" for name in ARGUMENTS} <= names


def test_a_real_server_shows_scalars_per_task_images_and_histograms(tmp_path: Path) -> None:
    class Weights(Logs):
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.log({"lr": 0.1})
            ctx.log({"a": torch.rand(3, 8, 8)}, "image")
            ctx.log({"weights": ctx.model.heads["det"].weight}, "histogram")

    data = {"det": batches(4), "seg": batches(4, seed=1)}
    board = TensorBoard(str(tmp_path / "tb"))
    trainer(board, Weights(), data=data, model=Heads()).fit(num_epochs=2)
    with serving(tmp_path / "tb", 1) as url:
        runs = asked(f"{url}/scalars/tags")
        assert {"det/loss", "seg/loss", "lr"} <= set(runs["."])
        points = asked(f"{url}/scalars/scalars", run=".", tag="det/loss")
        assert [step for _, step, _ in points] == list(range(8))
        assert "a" in asked(f"{url}/images/tags")["."]
        assert "weights" in asked(f"{url}/histograms/tags")["."]
        assert "run/plugins/text_summary" in asked(f"{url}/text/tags")["."]
