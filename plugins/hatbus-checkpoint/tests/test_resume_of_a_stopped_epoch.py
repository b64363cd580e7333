"""What was asked for in a step that is saved is not lost by a resume; nor what a length hides."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hatbus import Trainer, hookimpl, plugin, rng
from hatbus_checkpoint import Checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from killing import Kills, killed
from runs import Noisy, data_of

sys.path.pop(0)


class Notes:
    """Every step with its batch; stops each epoch after three steps, or the run after ``end``."""

    def __init__(self, end: int | None = None) -> None:
        self.end = end
        self.rows: dict[int, Any] = {}
        self.ends: list[int] = []

    @hookimpl
    def on_step_end(self, ctx: Any, step_id: int, losses: Any) -> None:
        if ctx.exception is None:
            loss = losses["loss"].item()
            self.rows[ctx.global_step_id] = (ctx.epoch_id, step_id, loss, float(torch.rand(())))
        if step_id == 2 and self.end is None:
            ctx.control.stop("epoch", "enough")
        if ctx.global_step_id + 1 == self.end:
            ctx.control.stop("run", "enough")

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        if ctx.exception is None and ctx.position.step == 0:
            self.ends.append(ctx.global_step_id)


def trained(path: Path, data: Any, notes: Notes, *more: object, **options: Any) -> nn.Module:
    rng.seed_all(0)
    model = nn.Linear(3, 1)
    checkpoint = Checkpoint(str(path), interval_by="step", **options)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        data,
        nn.functional.mse_loss,
        [notes, checkpoint, *more],
        seed=3,
    )
    trainer.fit(num_epochs=4)
    return model


@pytest.mark.parametrize(("interval", "kill"), [(1, 5), (1, 6), (2, 7), (4, 7)])
@pytest.mark.parametrize("kind", ["own", "foreign", "generator", "stateful"])
def test_an_epoch_that_was_stopped_in_a_saved_step_is_over_after_a_resume(
    tmp_path: Path, kind: str, interval: int, kill: int
) -> None:
    whole = Notes()
    expected = trained(tmp_path / "whole", data_of(kind, 0), whole, save_interval=None)
    path, options = tmp_path / "parts", {"save_interval": interval, "resume": "auto"}
    killed(lambda: trained(path, data_of(kind, 0), Notes(), Kills(kill), **options))
    rest = Notes()
    model = trained(path, data_of(kind, 0), rest, **options)
    saved = (kill - 1) // interval * interval if interval > 1 else kill
    assert rest.rows == {step: row for step, row in whole.rows.items() if step >= saved}
    assert (whole.ends, rest.ends) == ([2, 5, 8, 11], [5, 8, 11])
    assert torch.equal(expected.weight, model.weight)


@plugin(stage="schedule")
class StopsRun:
    """Ends the run in the very step in which the epoch is stopped."""

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        if ctx.global_step_id == 5:
            ctx.control.stop("run", "a signal")


def test_a_stop_of_the_run_in_the_same_step_does_not_take_back_that_of_the_epoch(
    tmp_path: Path,
) -> None:
    whole, first, second = Notes(), Notes(), Notes()
    trained(tmp_path / "whole", data_of("own", 0), whole, save_interval=None)
    path = tmp_path / "parts"
    trained(path, data_of("own", 0), first, StopsRun(), save_interval=None)
    assert max(first.rows) == 5
    trained(path, data_of("own", 0), second, save_interval=None, resume="auto")
    assert first.rows | second.rows == whole.rows


class Buckets:
    """A batch sampler whose length is an estimate: it gives five batches and says three."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter([[i, i + 1] for i in range(5)])


@pytest.mark.parametrize("end", [2, 3, 4])
def test_a_run_stopped_where_an_estimated_length_ends_goes_on_with_the_rest(
    tmp_path: Path, end: int
) -> None:
    def data() -> Any:
        return DataLoader(Noisy(), batch_sampler=Buckets())

    whole, first, second = Notes(end=-1), Notes(end=end), Notes(end=-1)
    trained(tmp_path / "whole", data(), whole, save_interval=None)
    assert [rows[:2] for rows in whole.rows.values()] == [
        (e, s) for e in range(4) for s in range(5)
    ]
    trained(tmp_path / "parts", data(), first, save_interval=None)
    trained(tmp_path / "parts", data(), second, save_interval=None, resume="auto")
    assert first.rows | second.rows == whole.rows
