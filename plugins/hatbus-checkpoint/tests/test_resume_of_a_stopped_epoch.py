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
from runs import Noisy, data_of

sys.path.pop(0)


class Killed(Exception):  # noqa: N818 - a kill, no error
    """In place of a kill: nothing of the run is left but what is on the disk."""


class Notes:
    """Every step with its batch; stops each epoch after three steps, and dies in one step."""

    def __init__(self, kill: int | None = None, end: int | None = None) -> None:
        self.kill, self.end = kill, end
        self.rows: dict[int, Any] = {}
        self.ends: list[int] = []

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == self.kill:
            raise Killed

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
    if notes.kill is None:
        trainer.fit(num_epochs=4)
    else:
        with pytest.raises(Killed):
            trainer.fit(num_epochs=4)
    return model


@pytest.mark.parametrize(("interval", "kill"), [(1, 5), (1, 6), (2, 7), (4, 7)])
@pytest.mark.parametrize("kind", ["own", "foreign", "generator", "stateful"])
def test_an_epoch_that_was_stopped_in_a_saved_step_is_over_after_a_resume(
    tmp_path: Path, kind: str, interval: int, kill: int
) -> None:
    whole = Notes()
    expected = trained(tmp_path / "whole", data_of(kind, 0), whole, save_interval=None)
    first, second = Notes(kill), Notes()
    path, options = tmp_path / "parts", {"save_interval": interval, "resume": "auto"}
    trained(path, data_of(kind, 0), first, **options)
    model = trained(path, data_of(kind, 0), second, **options)
    assert first.rows | second.rows == whole.rows
    assert sorted({*first.ends, *second.ends}) == whole.ends == [2, 5, 8, 11]
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
