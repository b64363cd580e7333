"""StatsMonitor against a clock of the test's own."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from hatbus import hookimpl, plugin
from hatbus.errors import JobError
from hatbus_monitor.batch_size import samples_of_step
from hatbus_monitor.stats_monitor import StatsMonitor


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@plugin(stage="train")
class Spends:
    """Takes one second a step, half a second of waiting, three seconds of validation each epoch."""

    def __init__(self, clock: Clock, *, validates: bool = False) -> None:
        self.clock, self.validates = clock, validates

    @hookimpl
    def on_step_begin(self, ctx: Any) -> None:
        ctx.data_wait = 0.5
        self.clock.now += 0.5

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        self.clock.now += 1.0
        if self.validates and ctx.step_id == 2:
            ctx.emit.validate(ctx, "test")
            ctx.save("test")

    @hookimpl
    def validate(self) -> bool:
        self.clock.now += 3.0
        return True

    @hookimpl
    def save_checkpoint(self) -> bool:
        self.clock.now += 2.0
        return True


def stats(clock: Clock, **options: Any) -> StatsMonitor:
    monitor = StatsMonitor(**options)
    monitor._now = clock
    return monitor


class Unknown:
    """A loader without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.fixture
def run(trainer, events, caplog) -> Any:
    caplog.set_level(logging.INFO, "hatbus")

    def go(monitor: StatsMonitor, clock: Clock, data: Any = None, **plan: Any) -> Any:
        validates = plan.pop("validates", False)
        built = trainer([Spends(clock, validates=validates), monitor, events], data)
        for name, value in plan.pop("position", {}).items():
            setattr(built.ctx.position, name, value)
        return built.fit(**plan)

    return go


def lines(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_time_per_step_holds_the_wait_and_names_it(run, events) -> None:
    clock = Clock()
    run(stats(clock, log_freq=2), clock, num_epochs=1)
    assert events.of("time/step") == [(1, 1.5), (3, 1.5), (5, 1.5)]
    assert events.of("time/data") == [(1, 0.5), (3, 0.5), (5, 0.5)]


def test_samples_are_those_of_the_batches_or_of_the_option(run, events) -> None:
    clock = Clock()
    run(stats(clock, log_freq=6), clock, num_epochs=1)
    assert events.of("time/samples_per_second") == [(5, pytest.approx(48 / 9))]
    assert stats(clock, batch_size=30).batch_size == 30


def test_batch_size_of_the_option_is_used(run, events) -> None:
    clock = Clock()
    run(stats(clock, log_freq=6, batch_size=30), clock, num_epochs=1)
    assert events.of("time/samples_per_second") == [(5, pytest.approx(180 / 9))]


def test_line_tells_place_pace_and_what_remains(run, caplog) -> None:
    clock = Clock()
    run(stats(clock, log_freq=4), clock, num_epochs=2)
    assert (
        "epoch 1/2, step 4/6 (4/12 of the run): 1.5 s a step (500 ms waiting for data), "
        "5.33 samples/s, 0:00:12 left"
    ) in lines(caplog)


def test_validation_and_checkpoints_count_for_the_epoch_and_not_for_the_step(
    run, events, caplog
) -> None:
    clock = Clock()
    run(stats(clock, log_freq=6), clock, num_epochs=1, validates=True)
    assert events.of("time/step") == [(5, 1.5)]
    assert events.of("time/epoch") == [(5, 14.0)]
    assert (
        "epoch 1/1: 14 s for 6 steps (5 s of it validation and checkpoints), 0:00:00 left"
        in lines(caplog)
    )


def test_a_resumed_run_counts_its_own_steps_for_the_pace(run, caplog) -> None:
    clock = Clock()
    position = {"global_step": 8, "epoch": 1, "step": 2}
    run(stats(clock, log_freq=10), clock, num_epochs=3, position=position)
    assert "epoch 2/3 begins, from step 3" in lines(caplog)
    assert any(line.startswith("epoch 2/3: 6 s for 4 steps, 0:00:09") for line in lines(caplog))
    assert any(
        "step 4/6 (10/18 of the run)" in line and "0:00:12 left" in line for line in lines(caplog)
    )


def test_a_run_planned_in_steps_shows_its_epochs(run, caplog) -> None:
    clock = Clock()
    run(stats(clock, log_freq=7), clock, num_steps=8)
    assert any(line.startswith("epoch 2/2, step 1/6 (7/8 of the run)") for line in lines(caplog))


def test_a_loader_without_length_is_measured_by_its_first_epoch(run, data, caplog) -> None:
    clock = Clock()
    run(stats(clock, log_freq=4), clock, Unknown(data()), num_epochs=3)
    places = [line for line in lines(caplog) if "of the run" in line]
    assert places[0].startswith("epoch 1/3, step 4 (4 of the run)")
    assert places[0].endswith("? left")
    assert places[1].startswith("epoch 2/3, step 2/6 (8/18 of the run)")
    assert places[1].endswith("0:00:15 left")


def test_multitask_steps_count_the_samples_of_every_task(trainer, data, events) -> None:
    clock = Clock()
    monitor = stats(clock, log_freq=3)
    trainer([Spends(clock), monitor, events], {"a": data(3), "b": data(3)}).fit(num_epochs=1)
    assert events.of("time/samples_per_second") == [(2, pytest.approx(48 / 4.5))]


@pytest.mark.parametrize("first", [torch.tensor(1.0), torch.zeros(0, 4), {"meta": ["a"]}])
def test_samples_are_found_behind_parts_that_hold_none(first: Any) -> None:
    batch = (None, (first, torch.zeros(32, 2)), 1.0)
    assert samples_of_step([batch]) == 32
    assert samples_of_step([batch, batch]) == 64


def test_nothing_waits_for_the_device(trainer, reads) -> None:
    trainer([StatsMonitor(log_freq=1)], nan="ignore").fit(num_epochs=1)
    assert reads.count == 0


def test_log_freq_below_one_is_refused() -> None:
    with pytest.raises(JobError, match="log_freq is 0; accepted: a whole number of at least 1"):
        StatsMonitor(log_freq=0)
    with pytest.raises(JobError, match="batch_size is 0"):
        StatsMonitor(batch_size=0)
