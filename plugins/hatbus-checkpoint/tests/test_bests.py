"""Several metrics each have a best checkpoint, and one writer saves for all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small import names, publishing, tiny

sys.path.pop(0)

from hatbus import Trainer
from hatbus.cli import main
from hatbus.errors import JobError, PluginError
from hatbus_checkpoint import Checkpoint, weights_of
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.listing import one_of
from hatbus_checkpoint.tensor_file import read

ACC = [0.1, 0.7, 0.5, 0.3, 0.2, 0.6, 0.65, 0.1, 0.1]
LOSS = [0.9, 0.8, 0.7, 0.1, 0.6, 0.5, 0.4, 0.3, 0.2]
ERROR = [5.0, 4.0, 6.0, 7.0, 8.0, 9.0, 9.5, 3.0, 9.0]
BESTS = {
    "loss": {"mode": "min", "monitor_metric_key": "val/det/loss", "keep_best": 2},
    "error": {"mode": "min", "monitor_metric_key": "error"},
}


def run(path: Path, **options: Any) -> Trainer:
    """Saves every step; three values are published before each."""
    metrics = {
        "acc": publishing(ACC),
        "loss": publishing(LOSS, "val/det/loss"),
        "error": publishing(ERROR, "val/error"),
    }
    main_best = {"mode": "max", "monitor_metric_key": "val/acc", "keep_last": 2}
    saving = {"save_interval": 1, "interval_by": "step", "save_hash": False}
    return tiny(path, metrics, **main_best, **saving, **{"bests": BESTS, **options})


def marked(path: Path) -> dict[str, str]:
    found = path.glob("checkpoint-*.json")
    marks = {file.stem.removeprefix("checkpoint-"): json.loads(file.read_text()) for file in found}
    return {kind: mark["path"].rpartition("-")[2] for kind, mark in marks.items()}


def test_each_best_is_marked_exported_and_kept(tmp_path: Path) -> None:
    run(tmp_path).fit(num_steps=9)
    assert marked(tmp_path) == {"last": "9", "best": "2", "best-loss": "4", "best-error": "8"}
    kept = {"2", "4", "8", "9"}  # of loss the two best are 4 and 9
    assert {name.rpartition("-")[2] for name in names(tmp_path)} == kept
    for mark, step in marked(tmp_path).items():
        checkpoint = tmp_path / f"checkpoint-step-{step}"
        assert one_of(tmp_path, mark).path == checkpoint
        found = weights_of(tmp_path / mark)
        assert found.keys() == weights_of(checkpoint).keys()
        assert all((found[name] == weights_of(checkpoint)[name]).all() for name in found)
        if mark != "last":
            exported = read(tmp_path / f"weights-{mark}.safetensors")
            assert all((exported[name] == found[name]).all() for name in found)


@pytest.mark.parametrize("at", [2, 4, 7, 8])
def test_a_resumed_run_ends_with_the_same_bests(tmp_path: Path, at: int) -> None:
    whole = run(tmp_path / "whole")
    whole.fit(num_steps=9)
    run(tmp_path / "halves").fit(num_steps=at)
    again = run(tmp_path / "halves", resume="auto")
    again.fit(num_steps=9)
    assert marked(tmp_path / "halves") == marked(tmp_path / "whole")
    assert names(tmp_path / "halves") == names(tmp_path / "whole")
    assert again.bus.state_dict()["checkpoint"] == whole.bus.state_dict()["checkpoint"]


def test_a_kill_between_a_save_and_its_marks_is_mended(tmp_path: Path) -> None:
    run(tmp_path).fit(num_steps=8)
    before = marked(tmp_path)
    for kind in ("best-loss", "best-error"):
        (tmp_path / f"checkpoint-{kind}.json").unlink()
        (tmp_path / f"weights-{kind}.safetensors").unlink()
    run(tmp_path, resume="auto").fit(num_steps=8)
    assert marked(tmp_path) == before
    assert (tmp_path / "weights-best-error.safetensors").is_file()


def test_a_further_best_may_come_to_a_run_that_goes_on(tmp_path: Path) -> None:
    run(tmp_path, bests=None).fit(num_steps=5)
    run(tmp_path, resume="auto").fit(num_steps=9)
    assert marked(tmp_path) == {"last": "9", "best": "2", "best-loss": "9", "best-error": "8"}


@pytest.mark.parametrize(
    ("bests", "said"),
    [
        ("val/loss", "bests is 'val/loss'; accepted: a table of names, each with a table of mode"),
        ({"loss": "val/loss"}, "bests is {'loss': 'val/loss'}; accepted: a table of names"),
        ({"a/b": {}}, "bests.a/b: a name has letters, digits and '_' only"),
        ({"loss": {"mod": "min"}}, "bests.loss: unknown key 'mod'; did you mean 'mode'?"),
        ({"loss": {"monitor_metric_key": "val/x"}}, "bests.loss.mode is None; accepted: 'min'"),
        ({"loss": {"mode": "min"}}, "bests.loss.monitor_metric_key is None; accepted: a name"),
        (
            {"loss": {"mode": "min", "monitor_metric_key": "a", "keep_best": 0}},
            "bests.loss.keep_best is 0; accepted: a whole number of at least 1",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, bests: Any, said: str) -> None:
    with pytest.raises(JobError) as caught:
        run(tmp_path, bests=bests)
    assert str(caught.value).startswith(f"checkpoint: {said}")


def test_two_that_save_are_refused_with_the_way_to_have_two_bests(tmp_path: Path) -> None:
    second = Checkpoint(str(tmp_path / "other"), mode="min", monitor_metric_key="train/loss")
    with pytest.raises(PluginError, match="both replace save_checkpoint; one of them saves for al"):
        tiny(tmp_path, {"second": second}).fit(num_epochs=1)


def test_a_key_that_nothing_publishes_is_refused_by_its_name(tmp_path: Path) -> None:
    bests = {"loss": {"mode": "min", "monitor_metric_key": "train/los"}}
    trainer = tiny(tmp_path, bests=bests)
    with pytest.raises(JobError, match=r"bests\.loss\.monitor_metric_key is 'train/los"):
        trainer.fit(num_epochs=1)


TRAIN = """
import torch

def build():
    torch.manual_seed(0)
    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    loss = torch.nn.functional.mse_loss
    return {"model": model, "optimizer": optimizer, "data": data, "loss": loss, "val": data[:1]}
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 4
run_dir = "runs"
name = "it"
[plugins.validation]
data_loader = "@val"
[plugins.checkpoint]
mode = "min"
monitor_metric_key = "val/loss"
[plugins.checkpoint.bests]
worst = { mode = "max", monitor_metric_key = "val/loss" }
"""


def test_the_commands_know_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAIN)
    Path("job.toml").write_text(JOB)
    assert main(["run", "job.toml", "--quiet"]) == 0
    folder = CheckpointFolder(Path("runs/it/checkpoint"))
    values = {e.path.name: e.manifest["metrics"]["val/loss"] for e in folder.entries()}
    worst = max(values, key=lambda name: values[name])
    capsys.readouterr()
    assert main(["checkpoints", "runs/it"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(worst))
    assert "best-worst" in row
    assert main(["evaluate", "runs/it", "--name", "best-worst", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoint"] == worst
    assert found["metrics"] == {"val/loss": values[worst]}
    assert main(["export", "runs/it", "--name", "best-worst", "--single", "w.safetensors"]) == 0
    assert main(["checkpoints", "runs/it", "show", "best-wrst"]) == 4
    assert "did you mean 'best-worst'?" in capsys.readouterr().err
    assert (
        main(["run", "job.toml", "-o", 'run.resume="runs/it/best-worst"', "-o", "run.name=b"]) == 0
    )
