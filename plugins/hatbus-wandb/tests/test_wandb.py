"""Wandb: what its own reader finds of offline runs; what is said without login or network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
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
from hatbus_wandb.wandb import Wandb

KEY = "0123456789abcdef0123456789abcdef01234567"
with_client = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
with_checkpoints = pytest.mark.skipif(
    find_spec("hatbus_checkpoint") is None, reason="hatbus-checkpoint is not installed"
)


def trainer(tracker: Wandb, folder: Path) -> Trainer:
    torch.manual_seed(0)
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


def records(folder: Path) -> list[dict[str, Any]]:
    """What wandb's own reader finds in all the files of a run, oldest first."""
    found = []
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found += [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    return found


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_client_is_one_line_that_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"'wandb', which is not installed; python -m pip install"):
        trainer(Wandb(), tmp_path).fit(num_epochs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "ofline"}, "wandb: mode is 'ofline'"),
        ({"project": ""}, "wandb: project is ''"),
        ({"tags": "first"}, "wandb: tags is 'first'; accepted: a list"),
        ({"checkpoints": "newest"}, "wandb: checkpoints is 'newest'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        Wandb(**options)


@with_client
@with_checkpoints
def test_kills_leave_no_point_out_or_twice(tmp_path: Path) -> None:
    options = {"project": "p", "mode": "offline", "tags": ["t"], "checkpoints": "all"}
    killed_and_resumed("wandb", options, tmp_path)
    found = records(tmp_path / "runs/one/wandb/wandb")
    rows = [record["history"]["item"] for record in found if record["type"] == "history"]
    steps: dict[str, list[int]] = {name: [] for name in NUMBERS}
    for row in rows:
        for name in NUMBERS.keys() & row.keys():
            steps[name].append(row["_step"])
    assert differences(steps) == []
    assert [row["n"] for row in rows] == STEPS
    runs = [record["run"] for record in found if record["type"] == "run"]
    assert len({run["run_id"] for run in runs}) == 1
    assert runs[-1]["config"]["update"]["optimizer"]["lr"] == 0.05
    assert runs[-1]["display_name"] == "one"
    for name in ("picture", "note", "weights"):
        assert [row["_step"] for row in rows if name in str(row)] == ENDS
    assert any("plan.txt" in str(r) for r in found if r["type"] == "files")
    plan = next((tmp_path / "runs/one/wandb/wandb").glob("offline-run-*/files/plan.txt"))
    assert "on_log: wandb hears (rank 0)" in plan.read_text()
    assert any("checkpoint-" in str(r) for r in found if r["type"] not in ("history", "run"))


@with_client
def test_without_a_login_the_run_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(JobError, match="nobody is logged in; wandb login") as refused:
        trainer(Wandb(mode="online"), tmp_path).fit(num_epochs=1)
    assert "\n" not in str(refused.value)


@with_client
@with_checkpoints
def test_without_network_the_training_goes_on_and_the_points_wait_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said = trained("wandb", {"project": "p"}, tmp_path)
    assert said.count("does not take points") == 1
    assert "the training goes on" in said
    assert re.search(r"\d+ points have not been delivered.*hatbus deliver RUN", said)
    assert KEY not in said
    assert holds(tmp_path, KEY) == []
    run_file = tmp_path / "runs/one/wandb/run.json"
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = [sys.executable, "-W", "ignore", "-m", "hatbus", "deliver", str(run_file.parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(tmp_path / "runs/one/wandb/wandb")
    rows = [record["history"]["item"] for record in found if record["type"] == "history"]
    assert [row["_step"] for row in rows] == STEPS


@with_client
def test_the_example_of_the_page_trains(tmp_path: Path) -> None:
    example_of("wandb", tmp_path)
    assert [*tmp_path.glob("runs/*/wandb/wandb/offline-run-*/run-*.wandb")]


@with_client
@with_checkpoints
def test_the_job_of_the_page_of_trackers_runs(tmp_path: Path) -> None:
    docs = Path(__file__).parents[3] / "docs"
    shutil.copytree(docs / "examples/digits", tmp_path / "digits")
    table = (docs / "trackers.md").read_text("utf-8").split("```toml\n")[1].split("```")[0]
    job = '[run]\nentry = "digits/train.py:build"\nnum_epochs = 1\n[plugins.checkpoint]\n'
    (tmp_path / "job.toml").write_text(job + table, "utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "hatbus", "run", "job.toml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = tmp_path.glob("runs/**/wandb/wandb")
    config = next(r["run"] for r in records(found) if r["type"] == "run")["config"]["update"]
    assert config["run"]["num_epochs"] == 1


@with_client
class TestWandb(PluginContract):
    """The contract of every plugin."""

    observer = True

    def make(self) -> object:
        return Wandb(mode="offline")

    def make_another(self) -> object:
        return Wandb(mode="offline", save_dir=self.folder / "another")
