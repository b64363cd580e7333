"""``hatbus evaluate``: what a checkpoint holds, validated without training."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hatbus.cli import main
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.shown_checkpoint import ShownCheckpoint
from hatbus_checkpoint.targets import target_of

TRAIN = """
import torch
from hatbus.data import loader

def build(lr: float = 0.05, width: int = 3):
    torch.manual_seed(0)
    parts = torch.nn.Linear(width, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)
    model = torch.nn.Sequential(*parts)
    inputs = torch.randn(36, width)
    data = torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True))
    part = torch.utils.data.Subset
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
        "data": loader(part(data, range(16)), 4),
        "loss": torch.nn.functional.mse_loss,
        "val_loader": loader(part(data, range(16, 27)), 4, shuffle=False),
        "test_loader": loader(part(data, range(27, 36)), 4, shuffle=False),
    }
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 3
run_dir = "runs"
name = "it"

[plugins.ema]
decay = 0.7
decay_base = 0

[plugins.validation]
data_loader = "@val_loader"
weights = "raw"

[plugins.averaged]
use = "validation"
data_loader = "@val_loader"
weights = "ema"

[plugins.checkpoint]
mode = "max"
monitor_metric_key = "val/loss"

[plugins.csv_log]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job of three epochs and its run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "train.py").write_text(TRAIN)
        (folder / "job.toml").write_text(JOB)
        assert main(["run", "job.toml", "--quiet"]) == 0
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    folder = tmp_path / "it"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


def own_values(place: Path, epoch: int) -> dict[str, float]:
    """What the run itself published when it validated at the end of an epoch, from 1."""
    (path,) = place.glob(f"runs/it/checkpoint/checkpoint-epoch-{epoch:04d}-*/MANIFEST.json")
    found: dict[str, float] = json.loads(path.read_text())["metrics"]
    return {name: value for name, value in found.items() if name.startswith("val/")}


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What the command prints as JSON."""
    capsys.readouterr()
    code = main(["evaluate", *words, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The first line of the refusal."""
    capsys.readouterr()
    assert main(["evaluate", *words]) == code
    first: str = capsys.readouterr().err.splitlines()[0]
    return first


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with its hash."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_it_gives_what_the_run_itself_found_bit_for_bit_and_writes_nothing(
    place: Path, capsys: Any
) -> None:
    before = contents(place / "runs")
    found = evaluated(capsys, "runs/it")
    assert found["metrics"] == own_values(place, 3)
    assert found["checkpoint"].startswith("checkpoint-epoch-0003-")
    assert set(found["metrics"]) == {"val/loss", "val/averaged/loss"}
    assert contents(place / "runs") == before


def test_best_and_last_are_the_checkpoints_that_are_marked_so(place: Path, capsys: Any) -> None:
    best = max((1, 2, 3), key=lambda epoch: own_values(place, epoch)["val/loss"])
    assert best != 3  # the job calls a large loss good, so that they differ
    assert evaluated(capsys, "runs/it", "--name", "best")["metrics"] == own_values(place, best)
    assert evaluated(capsys, "runs/it/best")["metrics"] == own_values(place, best)
    assert evaluated(capsys, "runs/it", "--name", "last")["metrics"] == own_values(place, 3)


def test_a_run_a_folder_of_checkpoints_a_checkpoint_and_a_job_are_targets(
    place: Path, capsys: Any
) -> None:
    (second,) = place.glob("runs/it/checkpoint/checkpoint-epoch-0002-*")
    assert evaluated(capsys, str(second))["metrics"] == own_values(place, 2)
    named = evaluated(capsys, "runs/it/checkpoint", "--name", second.name)
    assert named["metrics"] == own_values(place, 2)
    for target in ("runs/it", "runs/it/checkpoint", "runs/it/job.json", "job.toml"):
        assert evaluated(capsys, target)["metrics"] == own_values(place, 3)


def test_of_a_folder_with_runs_the_newest_is_taken(place: Path, capsys: Any) -> None:
    shutil.copytree("runs/it", "runs/older")
    more = ["-o", "run.name=newer", "-o", "run.num_epochs=1", "--quiet"]
    assert main(["run", "job.toml", *more]) == 0
    assert evaluated(capsys, "runs")["metrics"] == own_values(place, 1)


def test_the_weights_that_were_asked_for_are_validated(place: Path, capsys: Any) -> None:
    own = own_values(place, 3)
    assert own["val/loss"] != own["val/averaged/loss"]
    raw = evaluated(capsys, "runs/it", "--weights", "raw")["metrics"]
    assert set(raw.values()) == {own["val/loss"]}
    averaged = evaluated(capsys, "runs/it", "--weights", "ema")["metrics"]
    assert set(averaged.values()) == {own["val/averaged/loss"]}


def test_another_loader_is_given_by_an_option(place: Path, capsys: Any) -> None:
    other = ["-o", 'validation.data_loader="@test_loader"']
    found, own = evaluated(capsys, "runs/it", *other)["metrics"], own_values(place, 3)
    assert found["val/averaged/loss"] == own["val/averaged/loss"]
    assert found["val/loss"] != own["val/loss"]
    assert found == evaluated(capsys, "runs/it", *other)["metrics"]


def test_the_table_names_the_checkpoint_and_holds_what_was_computed(
    place: Path, capsys: Any
) -> None:
    assert main(["evaluate", "runs/it", "--weights", "ema"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("checkpoint-epoch-0003-")
    assert out.splitlines()[0].endswith(", ema weights")
    assert f"{own_values(place, 3)['val/averaged/loss']:.6g}" in out
    assert "lr" not in out


def test_a_damaged_checkpoint_is_passed_over_and_one_that_was_named_is_refused(
    place: Path, capsys: Any
) -> None:
    (third,) = place.glob("runs/it/checkpoint/checkpoint-epoch-0003-*")
    file = third / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert evaluated(capsys, "runs/it")["metrics"] == own_values(place, 2)
    assert main(["evaluate", "runs/it"]) == 0
    assert f"checkpoint {third.name!r} is passed over: " in capsys.readouterr().err
    line = refused(capsys, "runs/it", "--name", "last", code=4)
    assert f"checkpoint {third.name!r} cannot be used: " in line


def test_a_checkpoint_that_its_run_removes_meanwhile_is_passed_over(place: Path) -> None:
    from hatbus.jobs import prepare

    target = target_of("runs/it", None, (), ())

    class Removing:
        def entry(self) -> Any:
            found = target.entry()
            if found.path.name.startswith("checkpoint-epoch-0003"):
                CheckpointFolder(found.path.parent).remove(found.path)
            return found

    trainer, own = prepare(target.job, (), ()).build(), own_values(place, 2)
    trainer.bus.register(ShownCheckpoint(Removing()), "shown")  # type: ignore[arg-type]
    assert trainer.validate() == own


def test_a_target_that_is_none_is_told_with_the_nearest(place: Path, capsys: Any) -> None:
    assert refused(capsys, "rums") == (
        "hatbus: error: no run, checkpoint or job 'rums'; did you mean 'runs'?"
    )
    (place / "empty").mkdir()
    line = refused(capsys, "empty")
    assert line.startswith("hatbus: error: no job.json in 'empty' or above it, so nobody knows")


def test_a_name_that_no_checkpoint_has_is_told_with_the_nearest(place: Path, capsys: Any) -> None:
    line = refused(capsys, "runs/it", "--name", "bets", code=4)
    assert line == "hatbus: error: no checkpoint 'bets'; did you mean 'best'?"


def test_a_job_that_was_not_trained_or_saves_nothing_is_told(place: Path, capsys: Any) -> None:
    line = refused(capsys, "job.toml", "-o", "run.run_dir=runs/not_yet", code=4)
    told = "no checkpoint in 'runs/not_yet/it/checkpoint'; was it trained yet?"
    assert line == f"hatbus: error: {told}"
    line = refused(capsys, "job.toml", "-p", "no:checkpoint")
    assert line.endswith("job.toml has no plugin 'checkpoint', so nothing was saved of its runs")


def test_a_run_without_a_validation_says_how_to_add_one(place: Path, capsys: Any) -> None:
    line = refused(capsys, "runs/it", "-p", "no:validation", "-p", "no:averaged")
    assert "nothing validates: the run has no plugin 'validation'" in line


def test_a_checkpoint_of_another_model_is_refused_with_a_table(place: Path, capsys: Any) -> None:
    capsys.readouterr()
    more = ["-o", "averaged.weights=raw"]
    assert main(["evaluate", "runs/it", "-o", "run.args.width=4", "-p", "no:ema", *more]) == 4
    told = capsys.readouterr().err
    assert "error: the model is not the one that was saved" in told
    assert "0.weight  (2, 3) in the checkpoint, (2, 4) in the model" in told
    assert "strict_match" not in told
    assert "plugin" not in told


def test_an_exception_in_the_users_code_is_the_users(place: Path, capsys: Any) -> None:
    (place / "train.py").write_text(TRAIN.replace("torch.manual_seed(0)", "1 / 0"))
    assert main(["evaluate", "job.toml"]) == 1
    assert capsys.readouterr().err.endswith("hatbus: error: ZeroDivisionError: division by zero\n")
