"""Which plugins a job may put on the first process alone."""

from __future__ import annotations

import pytest

from hatbus import Bus, hookimpl, plugin
from hatbus.callbacks import (
    Checkpoint,
    CosLrUpdater,
    EarlyStopping,
    ExponentialMovingAverage,
    GradClip,
    MetricUpdater,
    StatsMonitor,
)
from hatbus.errors import PluginError


class Hears:
    @hookimpl
    def on_step_end(self):
        pass


@plugin(stage="monitor", everywhere=True)
class Exchanges(Hears):
    pass


@plugin(stage="report", writes="optimizer.momentum")
class Claims(Hears):
    pass


@plugin(stage="train")
class Trains(Hears):
    pass


@pytest.mark.parametrize(
    "make",
    [
        Exchanges,
        Claims,
        Trains,
        lambda: CosLrUpdater(warmup_len=2),
        lambda: GradClip(max_norm=1.0),
        ExponentialMovingAverage,
        lambda: MetricUpdater(metrics=[], metric_update_func=lambda *_: None),
        lambda: EarlyStopping("val/loss"),
        lambda: Checkpoint("somewhere"),
    ],
)
def test_what_all_processes_need_is_refused_on_one(make) -> None:
    with pytest.raises(PluginError, match=r"plugin 'mine': ranks='zero', but it .*leave ranks out"):
        Bus().register(make(), "mine", overrides={"ranks": "zero"})


@pytest.mark.parametrize("make", [Hears, StatsMonitor])
def test_what_only_watches_may_be_on_one(make) -> None:
    bus = Bus(rank=1)
    bus.register(make(), "mine", overrides={"ranks": "zero"})
    assert bus.implementations("on_step_end") == []


def test_a_class_cannot_say_both() -> None:
    with pytest.raises(PluginError, match="has to run on every rank"):
        plugin(ranks="zero", everywhere=True)(type("Both", (Hears,), {}))


def test_a_child_inherits_that_all_processes_need_it() -> None:
    with pytest.raises(PluginError, match="has to run on every rank"):
        Bus().register(type("Child", (Exchanges,), {})(), "child", overrides={"ranks": "zero"})
