"""Every log holds the training loss, as the plain sum over the samples would give it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batches, tiny_trainer

from hatbus import Context, Trainer, hookimpl
from hatbus.callbacks import Checkpoint, CsvLog, MetricUpdater
from hatbus.errors import JobError

UNEQUAL = [*batches(3, size=4), *batches(1, size=2, seed=1)]


class Heard:
    """Notes what is published, with the step."""

    def __init__(self) -> None:
        self.values: list[tuple[int, str, float]] = []

    @hookimpl
    def on_log(self, ctx: Context, logs: dict[str, Any]) -> None:
        self.values += [(ctx.global_step_id, name, float(v)) for name, v in logs.items()]


class Sums:
    """The same by hand: every sample's loss, with a number of the host's own."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    @hookimpl
    def on_batch_end(self, batch: Any, losses: dict[str, torch.Tensor]) -> None:
        self.seen.append((losses["loss"].item(), len(batch[0])))

    def mean(self, first: int, last: int) -> float:
        part = self.seen[first:last]
        return sum(loss * n for loss, n in part) / sum(n for _, n in part)


def test_the_loss_is_the_mean_over_the_epochs_samples_and_over_those_since_the_last_point() -> None:
    heard, sums = Heard(), Sums()
    tiny_trainer([heard, sums], UNEQUAL, log_every=3).fit(num_epochs=2)
    expected = [
        (2, "train/loss_step", sums.mean(0, 3)),
        (3, "train/loss", sums.mean(0, 4)),
        (5, "train/loss_step", sums.mean(4, 6)),
        (7, "train/loss", sums.mean(4, 8)),
    ]
    assert [(step, name) for step, name, _ in heard.values] == [(s, n) for s, n, _ in expected]
    for (*_, found), (*_, by_hand) in zip(heard.values, expected, strict=True):
        assert found == pytest.approx(by_hand, rel=1e-6)


def test_log_every_zero_leaves_the_epochs_alone_and_nonsense_is_refused() -> None:
    heard = Heard()
    tiny_trainer([heard], batches(60), log_every=0).fit(num_epochs=1)
    assert [(step, name) for step, name, _ in heard.values] == [(59, "train/loss")]
    with pytest.raises(JobError, match="log_every is -1; accepted: a whole number of at least 0"):
        tiny_trainer(log_every=-1)


def test_micro_batches_count_by_their_samples() -> None:
    heard, sums = Heard(), Sums()
    tiny_trainer([heard, sums], UNEQUAL, accumulate=2).fit(num_epochs=1)
    assert heard.values == [(1, "train/loss", pytest.approx(sums.mean(0, 4), rel=1e-6))]


def test_every_task_has_its_own_and_several_losses_their_sum() -> None:
    def parts(outs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        error = outs - target
        return {"squares": (error**2).mean(), "sizes": error.abs().mean()}

    heard = Heard()
    data = {"one": batches(3), "two": batches(3, seed=1)}
    loss = {"one": torch.nn.functional.mse_loss, "two": parts}
    tiny_trainer([heard], data, loss=loss).fit(num_epochs=1)
    found = {name: value for _, name, value in heard.values}
    names = {"train/one/loss", "train/two/squares", "train/two/sizes", "train/two/loss"}
    assert found.keys() == names
    both = found["train/two/squares"] + found["train/two/sizes"]
    assert found["train/two/loss"] == pytest.approx(both)


def test_a_plugin_that_publishes_the_name_keeps_it() -> None:
    class Own:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            ctx.log({"train/loss": 7.0 + ctx.global_step_id})

    for plugin in (Own(), MetricUpdater(metrics=["loss"])):
        heard = Heard()
        tiny_trainer([plugin, heard], log_every=1).fit(num_epochs=2)
        values = [(step, name) for step, name, _ in heard.values if name == "train/loss"]
        assert values == [(step, "train/loss") for step in range(6)]


def test_a_bad_loss_whose_step_is_skipped_does_not_count() -> None:
    class Once:
        calls = 0

        def __call__(self, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            loss = torch.nn.functional.mse_loss(outs, target)
            return loss * float("nan") if self.calls == 2 else loss

    heard, sums = Heard(), Sums()
    tiny_trainer([heard, sums], loss=Once(), nan="skip_step").fit(num_epochs=1)
    del sums.seen[1]
    assert heard.values == [(2, "train/loss", pytest.approx(sums.mean(0, 2), rel=1e-6))]


def test_without_anybody_who_hears_it_nothing_is_gathered() -> None:
    trainer = tiny_trainer()
    trainer.fit(num_epochs=1)
    assert "core.train_loss" not in trainer.bus.members
    assert trainer.ctx.latest == {}


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 5])
def test_a_run_that_is_resumed_inside_an_epoch_publishes_the_same(
    tmp_path: Path, stopped_after: int
) -> None:
    def run(name: str, resume: str | None = None) -> tuple[Trainer, Heard]:
        heard = Heard()
        saved = Checkpoint(str(tmp_path / name), save_interval=None, resume=resume)
        return tiny_trainer([heard, saved], UNEQUAL, log_every=2), heard

    whole, expected = run("whole")
    whole.fit(num_epochs=2)
    first, before = run("halves")
    first.fit(num_steps=stopped_after)
    second, after = run("halves", "auto")
    second.fit(num_epochs=2)
    ends = [v for v in before.values if v[1] != "train/loss" or v[0] % 4 == 3]
    assert [*ends, *after.values] == expected.values


def test_the_csv_log_has_it_without_any_other_plugin(tmp_path: Path) -> None:
    sums = Sums()
    tiny_trainer([CsvLog(tmp_path / "log.csv"), sums]).fit(num_epochs=2)
    text = (tmp_path / "log.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    assert [float(row["train/loss"]) for row in rows] == [
        pytest.approx(sums.mean(0, 3), rel=1e-6),
        pytest.approx(sums.mean(3, 6), rel=1e-6),
    ]
