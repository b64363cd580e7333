"""EarlyStopping: when it stops, and that a resumed run counts on."""

from __future__ import annotations

import math
import os
import signal
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import Context, Trainer, hookimpl, plugin
from hatbus.errors import JobError
from hatbus_validation.early_stopping import EarlyStopping, improves
from hatbus_validation.validation import Validation

torch.set_num_threads(1)


@plugin(stage="monitor")
class Publishes:
    """Publishes one value of a list at every epoch's end."""

    def __init__(self, values: list[float], name: str = "score") -> None:
        self.values, self.name = values, name

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        if ctx.epoch_id < len(self.values):
            ctx.log({self.name: torch.tensor(self.values[ctx.epoch_id])})


def trainer(*plugins: object) -> Trainer:
    torch.manual_seed(0)
    model, x = nn.Linear(2, 1), torch.ones(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(x, x[:, :1])] * 2
    return Trainer(model, optimizer, data, nn.functional.mse_loss, plugins)


def epochs(values: list[float], stopping: EarlyStopping, most: int = 20) -> int:
    run = trainer(Publishes(values), stopping)
    run.fit(num_epochs=most)
    return run.ctx.position.epoch


@pytest.mark.parametrize(
    ("values", "options", "ran"),
    [
        ([5, 4, 3, 3, 3, 3, 3, 3], {"patience": 3}, 6),
        ([5, 4, 5, 5, 3, 5, 5, 5, 1], {"patience": 3}, 8),
        ([1, 2, 3, 2, 2, 9], {"mode": "max", "patience": 2}, 5),
        ([5, 4.95, 4.9, 4.85, 1], {"patience": 2, "min_delta": 0.2}, 3),
        ([5, math.nan, 1, 1], {"patience": 2}, 2),
        ([5, math.nan, math.nan, 4], {"patience": 2, "check_finite": False}, 3),
        ([math.nan, 5, 6, 7, 8], {"patience": 3, "check_finite": False}, 5),
        ([3, 2, 1], {"patience": 1}, 20),
    ],
)
def test_the_run_ends_after_patience_looks_without_improvement(
    values: list[float], options: dict[str, Any], ran: int
) -> None:
    assert epochs(values, EarlyStopping("score", **options)) == ran


def test_an_improvement_is_more_than_min_delta_and_never_nan() -> None:
    assert improves(0.8, 1.0, "min", 0.1)
    assert not improves(0.5, 0.75, "min", 0.25)
    assert improves(1.5, 1.0, "max", 0.25)
    assert not improves(math.nan, 1.0, "max", 0.0)
    assert not improves(math.nan, None, "min", 0.0)


def test_a_metric_of_the_validation_is_looked_at_after_every_validation() -> None:
    class Constant:
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.log({"constant": 1.0})

    x = torch.ones(4, 2)
    validation = Validation(
        [(x, x[:, :1])], callbacks=[Constant()], val_interval=1, interval_by="step"
    )
    run = trainer(EarlyStopping("val/constant", patience=2), validation)
    run.fit(num_epochs=5)
    assert run.ctx.position.global_step == 3


def test_a_resumed_run_counts_on_and_a_stopped_one_does_not_start_again() -> None:
    values = [5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    first = EarlyStopping("score", patience=3)
    assert epochs(values, first, most=3) == 3
    second = EarlyStopping("score", patience=3)
    second.load_state_dict(first.state_dict())
    run = trainer(Publishes(values), second)
    run.ctx.position.epoch, run.ctx.position.global_step = 3, 6
    run.fit(num_epochs=20)
    assert run.ctx.position.epoch == 5
    assert second.best == 4.0
    third = EarlyStopping("score", patience=3)
    third.load_state_dict(second.state_dict())
    run = trainer(third)
    run.ctx.position.epoch, run.ctx.position.global_step = 5, 10
    run.fit(num_epochs=20)
    assert run.ctx.position.global_step == 10
    patient = EarlyStopping("score", patience=5)
    patient.load_state_dict(second.state_dict())
    run = trainer(Publishes(values), patient)
    run.ctx.position.epoch, run.ctx.position.global_step = 5, 10
    run.fit(num_epochs=20)
    assert run.ctx.position.epoch == 7


@pytest.mark.parametrize("changed", [("accuracy", "max"), ("accuracy", "min"), ("score", "max")])
def test_a_run_resumed_with_another_monitor_or_mode_starts_anew_and_says_so(
    changed: tuple[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = EarlyStopping("score", patience=2)
    assert epochs([0.2, 0.1, 0.3, 0.3, 0.3], first) == 4
    second = EarlyStopping(*changed, patience=2)
    second.load_state_dict(first.state_dict())
    run = trainer(Publishes([0.6, 0.6, 0.6], changed[0]), second)
    run.fit(num_epochs=20)
    assert run.ctx.position.epoch == 3
    assert second.best == pytest.approx(0.6)
    said = "the saved run watched 'score' (min), this one watches {!r} ({})".format(*changed)
    assert [said in r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [True]


def test_a_state_without_what_was_watched_is_taken_as_it_is() -> None:
    stopping = EarlyStopping("score", patience=3)
    stopping.load_state_dict({"best": 1.5, "wait": 2})
    assert (stopping.best, stopping.wait) == (1.5, 2)


def test_a_metric_that_nobody_publishes_is_an_error_with_the_known_names() -> None:
    x = torch.ones(4, 2)
    run = trainer(Validation([(x, x[:, :1])]), EarlyStopping("val/los"))
    with pytest.raises(JobError, match=r"'val/los', and nothing .* that; did you mean 'val/loss'"):
        run.fit(num_epochs=2)


@pytest.mark.parametrize(
    ("published", "counts", "said"),
    [
        ("train/accuracy", [1, 1, 1], "; did you mean 'train/accuracy'?"),
        ("lr", [0, 0, 0], "; known: 'lr', 'train/loss'"),
        ("", [0, 0, 0], "; known: 'train/loss'"),
    ],
)
def test_without_a_validation_a_metric_that_nobody_publishes_is_warned_of_once(
    caplog: pytest.LogCaptureFixture, published: str, counts: list[int], said: str
) -> None:
    what = "early_stopping: no metric 'train/acuracy' was published, so nothing stops the run"

    found: list[int] = []

    @plugin(stage="report")
    class Counts:
        @hookimpl
        def on_epoch_end(self) -> None:
            found.append(caplog.text.count(what))

    publishes = Publishes([1.0] * 3 if published else [], published)
    trainer(publishes, EarlyStopping("train/acuracy"), Counts()).fit(num_epochs=3)
    assert found == counts
    assert [r.getMessage() for r in caplog.records if what in r.getMessage()] == [what + said]


def test_a_stopped_run_is_not_told_of_a_missing_metric(caplog: pytest.LogCaptureFixture) -> None:
    class Stops:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            ctx.control.stop("run")

    trainer(Stops(), EarlyStopping("train/loss")).fit(num_epochs=3)
    assert "was published" not in caplog.text


def test_a_run_that_is_terminated_in_its_first_validation_is_not_told_of_a_missing_metric() -> None:
    class Terminated:
        def __iter__(self) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            yield torch.ones(4, 2), torch.ones(4, 1)

    validation = Validation(Terminated(), interval_by="step")
    run = trainer(validation, EarlyStopping("val/loss"))
    with pytest.raises(SystemExit) as caught:
        run.fit(num_epochs=2)
    assert caught.value.code == 128 + signal.SIGTERM
    assert run.ctx.position.global_step == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "mode is 'best'; accepted: 'min', 'max'"),
        ({"patience": 0}, "patience is 0; accepted: a whole number of at least 1"),
        ({"min_delta": -1}, "min_delta is -1; accepted: a number of at least 0"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        EarlyStopping("score", **options)
