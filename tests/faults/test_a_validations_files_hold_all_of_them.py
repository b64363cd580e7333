"""Logs among a validation's callbacks: every validation is in them, over kills and resumes too."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint, CsvLog, JsonlLog, TensorBoard, Validation
from hatbus.errors import JobError

torch.set_num_threads(1)
STEPS, EVERY = 20, 3


class Says:
    """Publishes the sum of the weights, and each batch's number."""

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        ctx.log({"batch": ctx.global_step_id})

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        ctx.log({"weight": ctx.model.weight.sum()})


class Dies:
    def __init__(self, at: int) -> None:
        self.at = at

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == self.at:
            raise KeyboardInterrupt


def run(folder: Path, *, kill: int = -1, loaders: Any = None, **options: Any) -> Trainer:
    """20 steps, a validation every third, a checkpoint every fourth."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    chance = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, 3, generator=chance), torch.ones(4, 1)) for _ in range(STEPS)]
    inside = [Says(), JsonlLog(), CsvLog(), TensorBoard(str(folder / "tb"), overwrite=True)]
    validation = Validation(loaders or data[:2], None, inside, EVERY, "step")
    saving = Checkpoint(
        str(folder / "c"),
        save_interval=4,
        interval_by="step",
        save_on_train_end=False,
        resume="auto",
    )
    plugins = [validation, saving, JsonlLog(), CsvLog(), Dies(kill)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = nn.functional.mse_loss
    trainer = Trainer(
        model,
        optimizer,
        data,
        loss,
        plugins,
        run_dir=folder.parent,
        run_name=folder.name,
        **options,
    )
    try:
        trainer.fit(num_steps=STEPS)
    except KeyboardInterrupt:
        assert kill >= 0
    return trainer


def lines(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            found = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    else:
        with path.open(newline="\n") as file:
            found = [json.loads(line) for line in file]
    return [{k: v for k, v in row.items() if k != "time"} for row in found]


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(e.step, float(make_ndarray(e.tensor_proto))) for e in board.Tensors(tag)]


def test_every_validation_is_in_every_file_at_the_trainings_step(tmp_path) -> None:
    model = run(tmp_path).ctx.model
    steps = [*range(EVERY - 1, STEPS, EVERY), STEPS - 1]  # and one at the end
    for suffix in ("csv", "jsonl"):
        found = lines(tmp_path / "val" / f"log.{suffix}")
        assert [int(r["step"]) for r in found if "val/batch" in r] == [
            s for s in steps for _ in "ab"
        ]
        assert [int(r["step"]) for r in found if "val/weight" in r] == steps
        outside = {
            int(r["step"]): float(r["val/weight"])
            for r in lines(tmp_path / f"log.{suffix}")
            if "val/weight" in r
        }
        inside = {int(r["step"]): float(r["val/weight"]) for r in found if "val/weight" in r}
        assert inside == outside  # what the training's own log has
        assert inside[STEPS - 1] == model.weight.sum().item()
    assert [step for step, _ in curve(tmp_path / "tb", "val/weight")] == steps
    assert [step for step, _ in curve(tmp_path / "tb", "val/loss")] == steps
    assert len(list((tmp_path / "tb").iterdir())) == 1
    assert not list(tmp_path.rglob("*.bak"))


@pytest.mark.parametrize("kills", [[2], [5], [6], [9, 13], [4, 12], [19, 19]])
def test_a_killed_and_resumed_runs_files_are_those_of_one_that_was_not(tmp_path, kills) -> None:
    run(tmp_path / "whole")
    for kill in kills:
        run(tmp_path / "parts", kill=kill)
    run(tmp_path / "parts")
    for name in ("val/log.csv", "val/log.jsonl", "log.csv", "log.jsonl"):
        assert lines(tmp_path / "parts" / name) == lines(tmp_path / "whole" / name), name
    for tag in ("val/weight", "val/loss"):
        assert curve(tmp_path / "parts/tb", tag) == curve(tmp_path / "whole/tb", tag)


def test_a_new_run_keeps_the_old_files_once(tmp_path) -> None:
    run(tmp_path)
    before = lines(tmp_path / "val/log.jsonl")
    (tmp_path / "c").rename(tmp_path / "old")
    run(tmp_path)
    (tmp_path / "val/log.jsonl.bak").rename(tmp_path / "bak.jsonl")
    assert lines(tmp_path / "bak.jsonl") == lines(tmp_path / "val/log.jsonl") == before


def test_a_second_fit_goes_on_in_the_files(tmp_path) -> None:
    trainer = run(tmp_path)
    before = lines(tmp_path / "val/log.csv")
    trainer.fit(num_steps=STEPS + EVERY)
    assert lines(tmp_path / "val/log.csv")[: len(before)] == before
    assert lines(tmp_path / "val/log.csv")[-1]["step"] == str(STEPS + EVERY - 1)


def test_several_loaders_that_share_the_callbacks_are_told_apart(tmp_path) -> None:
    batch = (torch.ones(4, 3), torch.ones(4, 1))
    run(tmp_path, loaders={"clean": [batch], "noisy": [batch, batch]})
    found = lines(tmp_path / "val/log.jsonl")
    names = {name for row in found for name in row} - {"step", "epoch", "event"}
    assert names == {f"val/{a}/{b}" for a in ("clean", "noisy") for b in ("batch", "weight")}
    assert sum("val/noisy/batch" in row for row in found) == 2 * 7
    assert len(curve(tmp_path / "tb", "val/noisy/weight")) == 7


def fit(plugins: Any, folder: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = [(torch.ones(4, 3), torch.ones(4, 1))] * 2
    place = {"run_dir": folder, "run_name": "one"}
    Trainer(model, optimizer, data, nn.functional.mse_loss, plugins, **place).fit(num_epochs=1)


@pytest.mark.parametrize("kind", [CsvLog, JsonlLog])
def test_two_logs_without_a_path_write_two_files(tmp_path, kind) -> None:
    name = "log.csv" if kind is CsvLog else "log.jsonl"
    fit({"first": kind(), "second": kind(), "says": Says()}, tmp_path)
    other = (tmp_path / "one" / name).with_stem("second")
    assert lines(tmp_path / "one" / name) == lines(other)
    assert len(lines(other)) == 3
    assert not list(tmp_path.rglob("*.bak"))


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: CsvLog(folder / "x"),
        lambda folder: JsonlLog(folder / "x"),
        lambda folder: TensorBoard(str(folder / "x")),
    ],
)
def test_two_plugins_with_one_path_are_refused_before_the_first_step(tmp_path, make) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    both = {"first": make(tmp_path), "second": make(tmp_path / "link")}
    with pytest.raises(JobError, match=r"plugins 'first' and 'second' both write '.*x'; give one"):
        fit({**both, "dies": Dies(0)}, tmp_path)
