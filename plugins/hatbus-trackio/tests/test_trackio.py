"""Trackio: what its own reader finds in its database on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tracker_runs import ENDS, NUMBERS, STEPS, differences, example_of, killed_and_resumed

from hatbus import Trainer
from hatbus.errors import JobError
from hatbus.testing import PluginContract
from hatbus_trackio.trackio import Trackio

with_client = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
with_checkpoints = pytest.mark.skipif(
    find_spec("hatbus_checkpoint") is None, reason="hatbus-checkpoint is not installed"
)
READS = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
runs = [*trackio.Api().runs("p")]
logs = [SQLiteStorage.get_logs("p", run.name, run_id=run.id) for run in runs]
print(json.dumps([[run.name for run in runs], [run.config for run in runs], logs], default=str))
"""


def trainer(tracker: Trackio, folder: Path) -> Trainer:
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


@pytest.mark.skipif(find_spec("trackio") is not None, reason="trackio is installed")
def test_a_missing_client_is_one_line_that_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"'trackio', which is not installed; python -m pip install"):
        trainer(Trackio(), tmp_path).fit(num_epochs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"project": ""}, "trackio: project is ''"),
        ({"private": "yes"}, "trackio: private is 'yes'"),
        ({"server_url": "http://host/?write_token=hunter2"}, "TRACKIO_WRITE_TOKEN"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said) as refused:
        Trackio(**options)
    assert "hunter2" not in str(refused.value)


@with_client
@with_checkpoints
def test_kills_leave_no_point_out_or_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    killed_and_resumed("trackio", {"project": "p", "checkpoints": "all"}, tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", READS]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names, (config,), (rows,) = json.loads(text.splitlines()[-1])
    assert len(names) == 1
    assert names[0].startswith("one-")
    steps: dict[str, list[int]] = {name: [] for name in NUMBERS}
    for row in rows:
        for name in NUMBERS.keys() & row.keys():
            steps[name].append(row["step"])
    assert differences(steps) == []
    assert [row["n"] for row in rows] == STEPS
    for name in ("picture", "weights", "note"):
        assert [row["step"] for row in rows if name in row] == ENDS
    assert config["optimizer"]["lr"] == 0.05
    assert "on_log: trackio hears (rank 0)" in config["plan"]
    assert list((tmp_path / "trackio").rglob("*.db"))


@with_client
def test_a_space_without_a_login_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(JobError, match="nobody is logged in to Hugging Face; hf auth login"):
        trainer(Trackio(space_id="me/space"), tmp_path).fit(num_epochs=1)
    monkeypatch.delenv("TRACKIO_WRITE_TOKEN", raising=False)
    with pytest.raises(JobError, match="the server wants a token"):
        trainer(Trackio(server_url="http://127.0.0.1:9"), tmp_path / "b").fit(num_epochs=1)


@with_client
def test_the_example_of_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    said = example_of("trackio", tmp_path)
    assert 'trackio show --project "digits"' in said
    assert [*tmp_path.glob("trackio/*.db")]


@with_client
class TestTrackio(PluginContract):
    """The contract of every plugin."""

    observer = True

    @pytest.fixture(autouse=True)
    def own_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)

    def make(self) -> object:
        return Trackio()

    def make_another(self) -> object:
        return Trackio(save_dir=self.folder / "another")
