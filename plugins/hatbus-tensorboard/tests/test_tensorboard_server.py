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
from pathlib import Path
from typing import Any

import pytest
import torch

from hatbus import Context, hookimpl
from hatbus_tensorboard.tensorboard import TensorBoard

sys.path.insert(0, str(Path(__file__).parent))
from boards import Heads, Logs, batches, trainer

sys.path.pop(0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real TensorBoard server on tmp_path/tb; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir"]
    command += [str(tmp_path / "tb"), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def asked(url: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)


def test_a_real_server_shows_scalars_per_task_images_and_histograms(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    class Weights(Logs):
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.log({"lr": 0.1})
            ctx.log({"a": torch.rand(3, 8, 8)}, "image")
            ctx.log({"weights": ctx.model.heads["det"].weight}, "histogram")

    data = {"det": batches(4), "seg": batches(4, seed=1)}
    board = TensorBoard(str(tmp_path / "tb"))
    trainer(board, Weights(), data=data, model=Heads()).fit(num_epochs=2)
    url = request.getfixturevalue("server") + "/data/plugin"
    deadline, runs = time.monotonic() + 60, {}
    while time.monotonic() < deadline:
        try:
            runs = asked(f"{url}/scalars/tags")
        except OSError:
            runs = {}
        if "lr" in runs.get(".", {}):
            break
        time.sleep(0.3)
    assert {"det/loss", "seg/loss", "lr"} <= set(runs["."])
    points = asked(f"{url}/scalars/scalars", run=".", tag="det/loss")
    assert [step for _, step, _ in points] == list(range(8))
    assert "a" in asked(f"{url}/images/tags")["."]
    assert "weights" in asked(f"{url}/histograms/tags")["."]
    assert "run/plugins/text_summary" in asked(f"{url}/text/tags")["."]
