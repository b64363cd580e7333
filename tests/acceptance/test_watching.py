"""Watching a run from outside: TensorBoard's own server and reader, and logs over ``kill -9``."""

from __future__ import annotations

import csv
import json
import re
import socket
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stranger import install
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hatbus.runs import run_folder

KINDS = ("scalars", "images", "histograms", "tensors")


def read(folder: Path) -> EventAccumulator:
    """What TensorBoard's own reader finds, every point of it."""
    found = EventAccumulator(str(folder), size_guidance=dict.fromkeys(KINDS, 0))
    found.Reload()
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(folder).Scalars(tag)]


def tree(folder: Path, indent: str = "") -> Iterator[str]:
    """A folder as docs/watching.md draws it, names that differ in every run as they are there."""
    seen = sorted((p for p in folder.iterdir() if p.name[0] != "."), key=lambda path: path.name)
    for path in seen:
        is_last, slash = path == seen[-1], "/" if path.is_dir() else ""
        name = re.sub(r"-[0-9a-f]{8}$", "-1a2b3c4d", path.name)
        name = re.sub(r"(?<=tfevents\.).*", "1700000000.host.1234.0", name)
        yield f"{indent}{'└── ' if is_last else '├── '}{name}{slash}"
        if slash and name != "plugins":
            yield from tree(path, f"{indent}{'    ' if is_last else '│   '}")


Ask = Callable[..., Any]


@pytest.fixture
def server(outside: Any) -> Callable[[], Ask]:
    """Starts TensorBoard on ``runs``; gives a function that asks it."""

    def start() -> Ask:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--port", port]
        outside.start([*command, "--host", "127.0.0.1"], PYTHONWARNINGS="ignore")

        def ask(path: str, data: Any = None, **query: Any) -> bytes:
            url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
            body = None if data is None else json.dumps(data).encode()
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()

        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                if len(json.loads(ask("runs"))) == 2:
                    return ask
            except OSError:
                pass
            time.sleep(0.2)
        raise TimeoutError("TensorBoard does not answer")

    return start


@pytest.mark.timeout(300)
def test_a_tensorboard_server_shows_the_examples(outside, checkout, server) -> None:
    outside.seconds = 120
    examples, board = checkout / "docs/examples", ("-p", "tensorboard", "-o")
    functions = 'tensorboard.tb_update_funcs=["pictures.py:pictures", "pictures.py:weights"]'
    more = ("-o", functions, "-p", "jsonl_log", "-o", "run.num_epochs=1")
    job = examples / "digits/job.toml"
    digits = outside.hatbus("run", job, *board, "tensorboard.update_freq=10", *more)
    job = examples / "multitask/job.toml"
    short = ("-o", "run.num_epochs=1", "-p", "no:checkpoint")
    short += ("-p", "no:validation", "-p", "no:early_stopping")
    tasks = outside.hatbus("run", job, *board, "tensorboard.update_freq=10", *short)
    assert (digits.code, tasks.code) == (0, 0), digits.err + tasks.err

    page = (checkout / "docs/watching.md").read_text("utf-8")
    folder = run_folder(outside.cwd / "runs/digits")
    assert "\n".join(["runs/digits/2026-11-30_14-05-59/", *tree(folder), ""]) in page

    ask = server()
    folders = folder, run_folder(outside.cwd / "runs/multitask")
    run, of_tasks = (f"{f.parent.name}/{f.name}/tensorboard" for f in folders)
    tags = json.loads(ask("plugin/scalars/tags"))
    assert {"loss", "lr/0", "train/accuracy", "val/accuracy"} <= set(tags[run])
    assert {"digit/loss", "turn/loss", "train/digit/accuracy", "lr/0"} <= set(tags[of_tasks])
    points = json.loads(ask("plugin/scalars/scalars", run=run, tag="lr/0"))
    rates = [(row["step"], pytest.approx(row["lr/0"])) for row in rows(folder) if "lr/0" in row]
    assert [(step, value) for _, step, value in points] == rates
    assert [step for step, _ in rates] == list(range(45))
    assert curve(folder / "tensorboard", "lr/0") == rates

    image = {"run": run, "tag": "batch/images", "sample": 0}
    assert len(json.loads(ask("plugin/images/images", **image))) == 4
    picture = json.loads(ask("plugin/images/images", **image))[-1]
    data = ask(f"plugin/images/individualImage?{picture['query']}#")
    assert data.startswith(b"\x89PNG")
    weights = {"run": run, "tag": "weights/head.1.weight"}
    histogram = json.loads(ask("plugin/histograms/histograms", **weights))[-1]
    assert sum(count for _, _, count in histogram[2]) == 10 * 64 * 4 * 4
    (text,) = json.loads(ask("plugin/text/text", run=run, tag="run/job/text_summary"))
    assert "cos_lr" in text["text"]
    experiment = json.loads(ask("plugin/hparams/experiment", {"experimentName": ""}))
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"optimizer.lr", "cos_lr.warmup_len", "run.seed"} <= names


BUILD = """
    import torch
    from torch.utils.data import TensorDataset
    from hatbus.data.loaders import loader


    def build():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        x = torch.randn(80, 3)
        return {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "data": loader(TensorDataset(x, x.sum(1, keepdim=True)), 8),
            "loss": torch.nn.functional.mse_loss,
        }
"""
DIES = """
    import os
    import signal
    from hatbus import hookimpl, plugin

    @plugin(stage="setup")
    class Dies:
        @hookimpl
        def on_step_begin(self, global_step_id):
            if str(global_step_id) == os.environ.get("DIES_AT"):
                os.kill(os.getpid(), signal.SIGKILL)
"""
JOB = """
    [run]
    entry = "build.py:build"
    num_epochs = 3
    run_dir = "."
    name = "{folder}"

    [plugins.dies]
    [plugins.cos_lr]
    [plugins.metric_updater]
    metric_update_func = "hatbus_monitor.update_functions:usual"
    metrics = ["loss"]
    step_log_freq = 3
    [plugins.checkpoint]
    save_interval = 4
    interval_by = "step"
    save_hash = false
    [plugins.tensorboard]
    flush_secs = 1000.0
    [plugins.jsonl_log]
    flush_every = 1000
    [plugins.csv_log]
    flush_every = 1000
    [plugins.grad_monitor]
    log_freq = 5
"""
SINKS = ("tensorboard", "log.jsonl", "log.csv")


def points(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Every published number by sink and name; the sinks' own times are left out."""
    board = read(folder / "tensorboard")
    found: dict[str, Any] = {sink: {} for sink in SINKS}
    for tag in board.Tags()["scalars"]:
        found["tensorboard"][tag] = [(e.step, e.value) for e in board.Scalars(tag)]
    with (folder / "log.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for sink, entries in (("log.jsonl", rows(folder)), ("log.csv", table)):
        for row in entries:
            for name, value in row.items():
                if name not in ("step", "epoch", "event", "time") and value not in ("", None):
                    point = (int(row["step"]), float(value))
                    found[sink].setdefault(name, []).append(point)
    return found


@pytest.mark.timeout(300)
def test_kill_9_and_resume_leave_no_step_twice_and_none_lost_in_any_log(outside) -> None:
    install(outside.site, "acme-dies", {"dies": "acme_dies:Dies"}, {"acme_dies.py": DIES})
    for folder in ("whole", "killed"):
        text = "\n".join(line.strip() for line in JOB.format(folder=folder).splitlines())
        (outside.cwd / f"{folder}.toml").write_text(text)
    build = "\n".join(line.removeprefix("    ") for line in BUILD.splitlines())
    (outside.cwd / "build.py").write_text(build)
    assert outside.hatbus("run", "whole.toml").code == 0
    whole = points(outside.cwd / "whole")
    assert [step for step, _ in whole["tensorboard"]["loss"]] == list(range(30))

    killed = outside.cwd / "killed"
    assert outside.hatbus("run", "killed.toml", DIES_AT="10").code == -9
    for sink, found in points(killed).items():  # saved after steps 3 and 7, killed in step 10
        steps = [step for step, _ in found["lr/0"]]
        assert steps == list(range(len(steps))), sink
        assert len(steps) >= 8, sink
    assert outside.hatbus("resume", killed).code == 0
    again = points(killed)
    for sink in SINKS:
        assert again[sink] == whole[sink], sink
