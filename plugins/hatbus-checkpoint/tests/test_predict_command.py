"""``hatbus predict``: the outputs of a run's checkpoint, in files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_evaluate_command import contents, place, trained  # noqa: F401 - the last two are fixtures

sys.path.pop(0)

from hatbus.cli import main
from hatbus.jobs import prepare
from hatbus_checkpoint import Checkpoint


def lines(folder: str = "predictions") -> list[dict[str, Any]]:
    text = (Path(folder) / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def outputs_of(*words: str) -> torch.Tensor:
    """What the command writes for every sample."""
    assert main(["predict", *words, "--anew"]) == 0
    return torch.tensor([row["output"] for row in lines()])


def refused(capsys: Any, *words: str, code: int = 2) -> str:
    """The first line of the refusal."""
    capsys.readouterr()
    assert main(["predict", *words, "--quiet"]) == code
    first: str = capsys.readouterr().err.splitlines()[0]
    return first


@pytest.mark.usefixtures("place")
def test_a_runs_outputs_are_those_of_its_model_over_the_validations_loader(capsys: Any) -> None:
    before = contents(Path("runs"))
    assert main(["predict", "runs/it"]) == 0
    out, err = capsys.readouterr()
    assert out == "11 samples: predictions/predictions.jsonl\n"
    assert "predicting on @val_loader" in err
    trainer = prepare(Path("job.toml"), ("no:ema", "no:averaged"), ()).build()
    model = trainer.ctx.model
    model.load_state_dict(Checkpoint.load("runs/it", "ema").weights)
    model.eval()
    loader: Any = trainer.bus.members["validation"].plugin.data_loader
    with torch.no_grad():
        expected = torch.cat([model(inputs) for inputs, _ in loader])
    assert torch.equal(torch.tensor([row["output"] for row in lines()]), expected)
    assert [row["index"] for row in lines()] == [*range(11)]
    assert contents(Path("runs")) == before
    about = json.loads(Path("predictions/predictions.json").read_text())
    assert about["of"]["checkpoint"].startswith("checkpoint-epoch-0003-")
    assert (about["of"]["view"], about["of"]["data_loader"]) == ("ema", "@val_loader")


@pytest.mark.usefixtures("place")
def test_weights_checkpoint_loader_and_form_are_chosen() -> None:
    usual = outputs_of("runs/it")
    assert not torch.equal(outputs_of("runs/it", "--weights", "raw"), usual)
    assert not torch.equal(outputs_of("runs/it", "--name", "best"), usual)
    assert len(outputs_of("runs/it", "-o", "predictions.data_loader=@test_loader")) == 9
    assert len(outputs_of("job.toml", "-o", "predictions.keep=[1]")) == 11
    assert len(lines()[0]["1"]) == 1
    assert main(["predict", "runs/it", "--out", "other", "--format", "safetensors"]) == 0
    from safetensors.torch import load_file

    found = load_file("other/predictions-00000.safetensors")
    assert torch.equal(found["output"], usual)


@pytest.mark.usefixtures("place")
def test_the_same_command_again_has_nothing_to_do_and_another_one_is_refused(
    capsys: Any,
) -> None:
    assert main(["predict", "runs/it"]) == 0
    before = contents(Path("predictions"))
    before.pop(".predictions.lock")
    assert main(["predict", "runs/it"]) == 0
    assert "11 samples are in predictions: that is all" in capsys.readouterr().err
    line = refused(capsys, "runs/it", "--weights", "raw")
    assert "another prediction is in 'predictions' (view: ema there, raw now" in line
    line = refused(capsys, "runs/it", "-o", "predictions.data_loader=@test_loader")
    assert "data_loader: @val_loader there, @test_loader now" in line
    after = contents(Path("predictions"))
    after.pop(".predictions.lock")
    assert after == before


@pytest.mark.usefixtures("place")
def test_a_plugin_of_the_job_that_writes_elsewhere_takes_the_files_place(capsys: Any) -> None:
    Path("mine.py").write_text(
        "from hatbus import hookimpl\n"
        "class Prints:\n"
        "    @hookimpl\n"
        "    def write_outputs(self, samples):\n"
        "        print(samples)\n"
        "        return True\n"
    )
    words = ["runs/it", "-p", "no:predictions", "-o", "validation.data_loader=@test_loader"]
    line = refused(capsys, *words)
    assert line == "hatbus: error: no plugin writes the outputs: leave out -p no:predictions"
    job = Path("job.toml")
    job.write_text(job.read_text() + '[plugins.prints]\nuse = "mine.py:Prints"\n')
    assert main(["predict", "job.toml", *words[1:]]) == 0
    assert capsys.readouterr().out == "[0, 1, 2, 3]\n[4, 5, 6, 7]\n[8]\n3 batches predicted\n"
    line = refused(capsys, "job.toml")
    assert "plugins 'prints' and 'predictions' both replace write_outputs" in line


@pytest.mark.usefixtures("place")
def test_what_cannot_be_predicted_is_told(capsys: Any) -> None:
    assert "no run, checkpoint or job 'rums'; did you mean 'runs'?" in refused(capsys, "rums")
    line = refused(capsys, "runs/it", "--weights", "emma")
    assert "'emma'" in line
    assert "did you mean 'ema'" in line
    off = ["-p", "no:validation", "-p", "no:averaged"]
    line = refused(capsys, "runs/it", *off)
    assert "the job says no loader to predict; name one that its entry function returns" in line
    line = refused(capsys, "runs/it", "-o", "predictions.data_loader=@tset_loader")
    assert "did you mean" in line
    assert "test_loader" in line
    line = refused(capsys, "runs/it", "--format", "csv")
    assert "'format' is 'csv'" in line
    assert line.endswith("accepted: 'jsonl', 'safetensors'")
    line = refused(capsys, "runs/it", "--task", "det")
    assert "the run has no task 'det'; it has no tasks" in line
    width = ["-o", "run.args.width=4", "-p", "no:ema", "-p", "no:averaged"]
    line = refused(capsys, "runs/it", *width, code=4)
    assert "error: the model is not the one that was saved" in line
    assert not Path("predictions").exists()
