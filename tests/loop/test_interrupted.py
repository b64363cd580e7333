"""A run that a signal stopped inside an epoch, and its resume: what they publish together."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint, JsonlLog, MetricUpdater, StatsMonitor, TensorBoard
from hatbus.data.loaders import loader
from hatbus_monitor.update_functions import usual

sys.path.insert(0, str(Path(__file__).parents[2] / "plugins/hatbus-tensorboard/tests"))
from boards import curve

sys.path.pop(0)

STEPS = 6
"""Of an epoch."""


class Interrupts:
    """Presses Ctrl-C, or asks for the end of the epoch or the run, in one step."""

    def __init__(self, step: int, wish: str = "") -> None:
        self.step, self.wish = step, wish

    @hookimpl
    def on_step_begin(self, ctx: Any) -> None:
        if ctx.global_step_id == self.step and self.wish:
            ctx.control.stop(self.wish)
        elif ctx.global_step_id == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def trainer(path: Path, *more: object) -> Trainer:
    torch.manual_seed(0)
    inputs = torch.randn(4 * STEPS, 3)
    model = nn.Linear(3, 1)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        loader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 4),
        nn.functional.mse_loss,
        [
            MetricUpdater(usual, ["loss"], step_log_freq=4, epoch_storage_freq=1),
            StatsMonitor(log_freq=4),
            JsonlLog(path / "log.jsonl"),
            TensorBoard(str(path / "board"), update_by="epoch"),
            Checkpoint(str(path / "checkpoint"), resume="auto"),
            *more,
        ],
    )


def published(path: Path) -> list[dict[str, Any]]:
    """The rows of the log; of what is measured in seconds only that it is there."""
    rows = map(json.loads, (path / "log.jsonl").read_text().splitlines())
    return [{k: 0 if k.startswith("time") else v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize("step", [STEPS, STEPS + 2, STEPS + 3])
def test_the_logs_are_those_of_a_run_that_was_never_interrupted(tmp_path: Path, step: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = trainer(whole).fit(num_epochs=3)
    with pytest.raises(KeyboardInterrupt, match=f"after step {step + 1}, saved; trainer.fit"):
        trainer(parts, Interrupts(step)).fit(num_epochs=3)
    found = trainer(parts).fit(num_epochs=3)
    assert published(parts) == published(whole)
    assert found.storage["monitor_obj"] == expected.storage["monitor_obj"]
    for name in ("train/loss", "loss"):
        assert curve(parts / "board", name) == curve(whole / "board", name)
    steps = [[s for s, _ in curve(p / "board", "time/epoch")] for p in (parts, whole)]
    assert steps == [[5, 11, 17], [5, 11, 17]]


@pytest.mark.parametrize(
    ("plan", "wish", "ends"),
    [
        ({"num_steps": 9}, "", [5, 8]),  # the plan is fulfilled
        ({"num_epochs": 2}, "epoch", [5, 8]),
        ({"num_epochs": 2}, "run", [5]),
    ],
)
def test_an_epoch_is_published_where_it_ends_for_good(
    tmp_path: Path, plan: dict[str, int], wish: str, ends: list[int]
) -> None:
    stops = Interrupts(8, wish) if wish else Interrupts(-1)
    trainer(tmp_path, stops).fit(**plan)
    assert [s for s, _ in curve(tmp_path / "board", "time/epoch")] == ends
    at_the_end = [row["step"] for row in published(tmp_path) if "time/epoch" in row]
    assert at_the_end == ends


def test_the_same_trainer_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    expected = trainer(tmp_path / "whole").fit(num_epochs=3)
    stopped = trainer(tmp_path / "parts", Interrupts(STEPS + 2))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(num_epochs=3)
    found = stopped.fit(num_epochs=3)
    assert found.position.global_step == 3 * STEPS
    assert torch.equal(found.model.weight, expected.model.weight)


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path) -> None:
    class Twice:
        @hookimpl
        def on_step_begin(self, global_step_id: int) -> None:
            if global_step_id == 2:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("the second one was not heard")

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Twice()).fit(num_epochs=1)


@pytest.mark.parametrize("saves", [True, False])
def test_what_ctrl_c_leaves_is_told(tmp_path: Path, saves: bool) -> None:
    run = trainer(tmp_path, Interrupts(1))
    if not saves:
        run.bus.unregister("checkpoint")
    with pytest.raises(KeyboardInterrupt) as caught:
        run.fit(num_epochs=1)
    told = "saved" if saves else "not saved"
    assert str(caught.value) == f"after step 2, {told}; trainer.fit() goes on from here"
