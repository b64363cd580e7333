"""Trials of a real Optuna: reported, pruned, killed and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

optuna = pytest.importorskip("optuna")

from hatbus import Trainer, hookimpl  # noqa: E402 - only where optuna is
from hatbus.errors import JobError  # noqa: E402
from hatbus_optuna import OptunaPruning, lasting, name_of, run_trial  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.WARNING)

NET = """
import time
import torch
from torch import nn
from hatbus import hookimpl

class Score:
    def __init__(self, goal=0.5):
        self.goal = goal

    @hookimpl
    def on_epoch_end(self, ctx):
        lr = ctx.optimizer.param_groups[0]["lr"]
        ctx.log({"score": 1 - abs(lr - self.goal) + ctx.epoch_id / 100})

def build(lr=0.1, sleep=0.0):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss(outs, target):
        time.sleep(sleep)
        with open("steps.txt", "a") as file:
            file.write("a step\\n")
        return nn.functional.mse_loss(outs, target)

    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
    return model, torch.optim.SGD(model.parameters(), lr=lr), data, loss
"""
TOML = """
[run]
entry = "net.py:build"
num_epochs = 4
run_dir = "runs/sweep"
[plugins.score]
use = "net.py:Score"
[plugins.checkpoint]
save_interval = 1
interval_by = "step"
"""
SCRIPT = """
import optuna
from hatbus_optuna import lasting, run_trial

def objective(trial):
    lr = trial.suggest_float("lr", 0.01, 0.9)
    return run_trial(trial, "job.toml", "score", [f"run.args.lr={lr}", "run.args.sleep=0.1"])

study = optuna.create_study(
    storage=lasting("sqlite:///sweep.db", heartbeat=1),
    study_name="net",
    direction="maximize",
    load_if_exists=True,
)
study.optimize(objective, n_trials=1)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    Path("job.toml").write_text(TOML)
    return tmp_path


class Publishes:
    """Publishes a score per epoch."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        ctx.log({"score": self.scores[ctx.epoch_id]})


def fitted(trial: Any, scores: list[float], **options: Any) -> OptunaPruning:
    model = torch.nn.Linear(1, 1)
    pruning = OptunaPruning("score", trial, **options)
    data = [(torch.ones(1, 1), torch.ones(1, 1))] * 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [Publishes(scores), pruning]
    Trainer(model, optimizer, data, torch.nn.functional.mse_loss, plugins).fit(len(scores))
    return pruning


@pytest.mark.parametrize(
    ("direction", "value", "wanted"),
    [("maximize", "best", 0.7), ("minimize", "best", 0.2), ("maximize", "last", 0.5)],
)
def test_values_are_reported_by_the_steps_of_the_run(
    direction: str, value: str, wanted: float
) -> None:
    study = optuna.create_study(direction=direction)
    trial = study.ask()
    assert fitted(trial, [0.2, 0.7, 0.5], value=value).result() == wanted
    assert study.trials[0].intermediate_values == {2: 0.2, 4: 0.7, 6: 0.5}


def test_a_pruned_trial_stops_its_run_and_is_pruned_for_optuna() -> None:
    threshold = optuna.pruners.ThresholdPruner(lower=0.5)
    study = optuna.create_study(direction="maximize", pruner=threshold)
    ended: list[OptunaPruning] = []

    def objective(trial: Any) -> float:
        ended.append(fitted(trial, [0.9, 0.1, 0.9, 0.9]))
        return ended[0].result()

    study.optimize(objective, n_trials=1)
    assert study.trials[0].state.name == "PRUNED"
    assert study.trials[0].intermediate_values == {2: 0.9, 4: 0.1}
    assert ended[0].is_pruned


def test_what_is_reported_twice_counts_once(recwarn: Any) -> None:
    study = optuna.create_study()
    trial = study.ask()
    fitted(trial, [0.3, 0.2])
    fitted(trial, [0.9, 0.8])
    assert study.trials[0].intermediate_values == {2: 0.3, 4: 0.2}
    assert not [one for one in recwarn if "reported" in str(one.message)]


def test_a_metric_that_is_never_published_is_told() -> None:
    trial = optuna.create_study().ask()
    model = torch.nn.Linear(1, 1)
    pruning = OptunaPruning("skore", trial)
    data = [(torch.ones(1, 1), torch.ones(1, 1))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = [Publishes([1.0]), pruning]
    Trainer(model, optimizer, data, torch.nn.functional.mse_loss, plugins).fit(1)
    with pytest.raises(JobError, match="no metric 'skore' was published; did you mean 'score'"):
        pruning.result()


def test_jobs_are_run_as_trials_with_a_folder_each() -> None:
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"lr": 0.5})
    study.enqueue_trial({"lr": 0.1})

    def objective(trial: Any) -> float:
        lr = trial.suggest_float("lr", 0.01, 0.9)
        return run_trial(trial, "job.toml", "score", [f"run.args.lr={lr}"])

    study.optimize(objective, n_trials=2)
    assert study.best_params == {"lr": 0.5}
    assert study.best_value == pytest.approx(1.03)
    assert {path.name for path in Path("runs/sweep").glob("trial-*")} == {
        "trial-0000",
        "trial-0001",
    }


def test_a_job_that_is_pruned_is_a_stopped_run_with_its_reason() -> None:
    pruner = optuna.pruners.ThresholdPruner(lower=2)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.optimize(lambda trial: run_trial(trial, "job.toml", "score"), n_trials=1)
    assert study.trials[0].state.name == "PRUNED"
    found = json.loads(Path("runs/sweep/trial-0000/run.json").read_text())
    assert found["state"] == "stopped"
    assert "pruned by Optuna: score is 0.6" in found["reason"]


def test_a_failed_job_is_a_failed_trial() -> None:
    study = optuna.create_study()

    def objective(trial: Any) -> float:
        return run_trial(trial, "job.toml", "score", ["run.args.larning_rate=1"])

    study.optimize(objective, n_trials=1, catch=(JobError,))
    assert study.trials[0].state.name == "FAIL"


def test_a_killed_trial_goes_on_from_its_checkpoint(folder: Path) -> None:
    Path("sweep.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen([sys.executable, "sweep.py"], env=environment)
    saved = folder / "runs/sweep/trial-0000"
    wait_for(lambda: len(list(saved.glob("checkpoint/checkpoint-step-*"))) > 1)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    steps = Path("steps.txt").read_text().count("\n")
    time.sleep(4)  # longer than two heartbeats
    subprocess.run([sys.executable, "sweep.py"], env=environment, check=True, timeout=200)

    study = optuna.load_study(study_name="net", storage="sqlite:///sweep.db")
    killed, again = study.trials[:2]
    assert [one.state.name for one in study.trials[:2]] == ["FAIL", "COMPLETE"]
    assert again.params == killed.params
    assert name_of(again) == "trial-0000"
    assert [path.name for path in folder.glob("runs/sweep/trial-*")] == ["trial-0000"]
    said = (saved / "run.log").read_text()
    assert "after 12 steps" in said
    assert set(again.intermediate_values) == {3, 6, 9, 12}
    assert Path("steps.txt").read_text().count("\n") <= steps + 10  # 12 from scratch


def wait_for(happened: Any) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_storage_that_lasts_keeps_the_studys_trials() -> None:
    study = optuna.create_study(storage=lasting("sqlite:///a.db"), study_name="a")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(optuna.load_study(study_name="a", storage="sqlite:///a.db").trials) == 2


def test_the_script_of_the_page_finds_something(folder: Path) -> None:
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "how-to/sweep.md").read_text("utf-8")
    script = page.split("```python no-run\n")[1].split("```")[0]
    assert len(script.splitlines()) <= 38
    shutil.copytree(docs / "examples/digits", folder, dirs_exist_ok=True)
    job = Path("job.toml").read_text("utf-8").replace("num_epochs = 8", "num_epochs = 1")
    Path("job.toml").write_text(job, "utf-8")
    Path("sweep.py").write_text(script.replace("MaxTrialsCallback(20", "MaxTrialsCallback(2"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "sweep.py"], env=environment, check=True, timeout=280)
    study = optuna.load_study(study_name="digits", storage="sqlite:///sweep.db")
    assert study.best_value > 0.2
    assert set(study.best_params) == {"lr", "batch_size", "warmup"}
    assert len(list(folder.glob("runs/sweep/trial-*"))) == len(study.trials)
