"""``init_from``: weights alone, for the start of another training."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hatbus import Trainer
from hatbus.callbacks import Checkpoint, ExponentialMovingAverage
from hatbus.cli import main
from hatbus.errors import CheckpointError, HatbusError, JobError, PluginError
from hatbus_checkpoint import InitFrom, weights_of


class Small(nn.Module):
    """A backbone and a head."""

    def __init__(self, classes: int = 2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, classes)

    def forward(self, inputs: torch.Tensor) -> Any:
        """Scores."""
        return self.head(self.backbone(inputs))


def trainer_of(model: nn.Module, plugins: Any = (), **options: Any) -> Trainer:
    """A trainer of it on three batches."""
    torch.manual_seed(7)
    data = [(torch.randn(4, 3), torch.zeros(4, 2)) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, data, nn.functional.mse_loss, plugins, **options)


def copied(model: nn.Module) -> dict[str, Any]:
    """Its state, copied."""
    return {n: v.clone() for n, v in model.state_dict().items()}


def is_same(model: nn.Module, state: Any, start: str = "") -> bool:
    """Whether the model has these weights where its names begin so."""
    own = {n: v for n, v in model.state_dict().items() if n.startswith(start)}
    return bool(own) and all(torch.equal(v, state[n]) for n, v in own.items())


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A run's folder, its last weights and its averages."""
    average = ExponentialMovingAverage(decay=0.5, decay_base=0)
    trainer = trainer_of(Small(), [average, Checkpoint(str(tmp_path / "run" / "checkpoint"))])
    trainer.fit(num_epochs=2)
    averages = {n: v.clone() for n, v in average.averages().items()}
    return tmp_path / "run", copied(trainer.ctx.model), averages


def test_a_trainer_starts_from_the_weights_of_a_run_and_from_nothing_else(run: Any) -> None:
    folder, state, _ = run
    trainer = trainer_of(Small(seed=1), init_from=folder)
    assert is_same(trainer.ctx.model, state)
    assert trainer.ctx.position.global_step == 0
    assert trainer.ctx.optimizer is not None
    assert not trainer.ctx.optimizer.state


def test_averages_are_taken_when_they_are_asked_for(run: Any) -> None:
    folder, state, averages = run
    trainer = trainer_of(Small(seed=1), init_from={"path": str(folder), "weights": "ema"})
    assert is_same(trainer.ctx.model, {**state, **averages})
    assert not is_same(trainer.ctx.model, state)


def test_any_file_of_weights_is_taken(run: Any, tmp_path: Path) -> None:
    _, state, _ = run
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"model": state, "epoch": 3}, tmp_path / "c.pth")
    torch.save({"state_dict": state, "optimizer": None}, tmp_path / "d.pth.tar")
    for name in ("a.safetensors", "b.pt", "c.pth", "d.pth.tar"):
        model = Small(seed=1)
        InitFrom(tmp_path / name)(model)
        assert is_same(model, state), name


def test_a_file_that_holds_no_weights_says_what_is_accepted(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": torch.ones(1)}, tmp_path / "a.pt")
    told = r"a.pt' holds no state dict; accepted: one by itself, or under 'state_dict', 'model_"
    with pytest.raises(CheckpointError, match=told):
        weights_of(tmp_path / "a.pt")


def test_another_head_keeps_its_own_weights_and_is_named(run: Any, caplog: Any) -> None:
    folder, state, _ = run
    model = Small(classes=5, seed=1)
    before = model.head.weight.clone()
    logging.getLogger("hatbus").propagate = True
    with caplog.at_level(logging.INFO, "hatbus"):
        found = InitFrom(folder)(model)
    assert is_same(model, state, "backbone.")
    assert torch.equal(model.head.weight, before)
    assert found.reshaped == ["head.weight", "head.bias"]
    assert (found.missing, found.unexpected, len(found.loaded)) == ([], [], 7)
    assert "7 of the model's 9 tensors; not these:" in caplog.text
    assert "reshaped    head.weight  (2, 4) in the source, (5, 4) in the model" in caplog.text


def test_strict_refuses_what_does_not_match_and_touches_nothing(run: Any) -> None:
    model = Small(classes=5, seed=1)
    before = copied(model)
    with pytest.raises(CheckpointError, match="and strict; strict = false loads what fits"):
        InitFrom(run[0], strict=True)(model)
    assert is_same(model, before)
    found = InitFrom(run[0], strict=True, skip=["head."])(model)
    assert found.left_out == ["head.weight", "head.bias"]


def test_names_are_renamed_by_their_beginnings(tmp_path: Path) -> None:
    source = Small()
    state = {f"module.encoder.{n}": v for n, v in source.backbone.state_dict().items()}
    state |= {"module.classifier.weight": torch.ones(2, 4), "module.classifier.bias": torch.ones(2)}
    torch.save(state, tmp_path / "a.pt")
    rename = {"module.encoder.": "backbone.", "module.classifier.": "head."}
    model = Small(seed=1)
    assert len(InitFrom(tmp_path / "a.pt", rename=rename, strict=True)(model).loaded) == 9
    assert is_same(model, source.state_dict(), "backbone.")
    assert torch.equal(model.head.bias, torch.ones(2))
    only = InitFrom(tmp_path / "a.pt", rename=rename, only=["head."], strict=True)(Small())
    assert only.loaded == ["head.weight", "head.bias"]


def test_a_backbone_is_put_below_a_name(tmp_path: Path) -> None:
    source = Small()
    torch.save(source.backbone.state_dict(), tmp_path / "a.pt")
    model = Small(seed=1)
    InitFrom(tmp_path / "a.pt", rename={"": "backbone."}, only=["backbone."], strict=True)(model)
    assert is_same(model, source.state_dict(), "backbone.")


@pytest.mark.parametrize(
    ("start", "advice"),
    [("module.", "rename = { 'module.' = '' } would match"), ("x_", "say by rename how the names")],
)
def test_weights_of_which_none_matches_are_an_error(
    start: str, advice: str, tmp_path: Path
) -> None:
    torch.save({f"{start}{n}": v for n, v in Small().state_dict().items()}, tmp_path / "a.pt")
    model = Small(seed=1)
    before = copied(model)
    told = f"none of its 9 tensors is in the model; it has '{start}backbone.0.weight', "
    with pytest.raises(CheckpointError, match=re.escape(told)) as caught:
        InitFrom(tmp_path / "a.pt")(model)
    assert advice in str(caught.value)
    assert is_same(model, before)


def test_a_tensor_that_is_shared_is_not_missing(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2, bias=False)
            self.two = nn.Linear(2, 2, bias=False)
            self.two.weight = self.one.weight

    save_file({"one.weight": torch.eye(2)}, tmp_path / "a.safetensors")
    model = Tied()
    assert InitFrom(tmp_path / "a.safetensors", strict=True)(model).missing == []
    assert torch.equal(model.two.weight, torch.eye(2))


def test_a_compiled_model_gets_the_weights_of_a_plain_one(run: Any) -> None:
    model = Small(seed=1)
    compiled: Any = torch.compile(model, backend="eager")
    InitFrom(run[0], strict=True)(compiled)
    assert is_same(model, run[1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"path": "x", "rname": {}}, "InitFrom: unknown option 'rname'; did you mean 'rename'"),
        ({"weights": "ema"}, "init_from is {'weights': 'ema'}; accepted: a path, or a table with"),
        ({"path": "x", "rename": ["a"]}, "init_from: rename is ['a']; accepted: a table of texts"),
        ("nowhere", "no checkpoint"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(options: Any, told: str) -> None:
    with pytest.raises(HatbusError, match=re.escape(told)) as caught:
        trainer_of(Small(), init_from=options)
    assert isinstance(caught.value, (JobError, PluginError, CheckpointError))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_loaded_without_a_trainer(run: Any) -> None:
    folder, state, averages = run
    found = Checkpoint.load(folder)
    assert (found.epoch, found.step) == (2, 6)
    assert found.path.name.startswith("checkpoint-epoch-0002")
    model = Small(seed=1)
    model.load_state_dict(found.weights)
    assert is_same(model, state)
    model.load_state_dict(Checkpoint.load(found.path, "ema").weights)
    assert is_same(model, {**state, **averages})


def test_of_a_place_with_runs_the_newest_is_taken(jobs: Path) -> None:
    first = weights_of("runs/first")
    again = ["-o", "run.args.lr=0.5", "-o", "run.seed=3", "--quiet"]
    assert main(["run", "job.toml", *again]) == 0
    second = weights_of("runs/first")
    assert not torch.equal(first["0.weight"], second["0.weight"])
    for path in ("runs/first/latest", "runs/first/last"):
        assert torch.equal(weights_of(path)["0.weight"], second["0.weight"]), path


TRAIN = """
import torch
from hatbus.data import loader

def build(classes: int = 1, lr: float = 0.1):
    torch.manual_seed(classes)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, classes))
    inputs = torch.randn(12, 3)
    data = loader(torch.utils.data.TensorDataset(inputs, torch.zeros(12, classes)), 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, data, torch.nn.functional.mse_loss
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 1
run_dir = "runs/first"
[plugins.checkpoint]
"""
FINE = """
[run]
entry = "train.py:build"
num_epochs = 1
run_dir = "runs/fine"
[run.args]
classes = 3
lr = 0.0
[run.init_from]
path = "runs/first"
skip = ["1."]
strict = true
[plugins.checkpoint]
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained job, and another that goes on with part of its weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "fine.toml").write_text(FINE)
    assert main(["run", "job.toml", "--quiet"]) == 0
    return tmp_path


def test_a_job_starts_from_another_runs_weights(jobs: Path, capsys: Any) -> None:
    assert main(["run", "fine.toml", "--quiet"]) == 0
    first, fine = weights_of("runs/first"), weights_of("runs/fine")
    assert torch.equal(first["0.weight"], fine["0.weight"])  # the learning rate is 0
    assert first["1.weight"].shape != fine["1.weight"].shape
    other = ["-o", "run.run_dir=runs/other", "-o", "run.init_from=runs/frist", "--quiet"]
    assert main(["run", "fine.toml", *other]) == 4
    assert "did you mean 'first'" in capsys.readouterr().err


def test_a_resume_does_not_ask_for_the_weights_that_the_run_began_with(
    jobs: Path, capsys: Any
) -> None:
    assert main(["run", "fine.toml", "--quiet"]) == 0
    Path("runs/first").rename("runs/moved")
    assert main(["resume", "runs/fine", "-o", "run.num_epochs=2", "--quiet"]) == 0
    capsys.readouterr()
    new = ["-o", "run.run_dir=runs/new", "-o", "run.resume=auto"]
    assert main(["run", "fine.toml", *new]) == 4
    assert "no checkpoint" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_resumes_if_it_can_starts_from_them_if_it_cannot(jobs: Path) -> None:
    assert main(["run", "fine.toml", "-o", "run.resume=auto", "--quiet"]) == 0
    assert torch.equal(weights_of("runs/first")["0.weight"], weights_of("runs/fine")["0.weight"])
