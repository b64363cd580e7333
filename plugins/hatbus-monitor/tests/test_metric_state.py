"""The accumulators of any metric survive a save and a load."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision

from hatbus.errors import CheckpointError
from hatbus_monitor.metric_state import is_data, lasting_state, restore, state_of


class Attributes:
    """A metric without state_dict: what it knows is in its attributes."""

    def __init__(self) -> None:
        self.total, self.seen, self.parts = torch.zeros(2), 0, {"a": [1.5]}
        self.table = np.zeros(3)
        self.call = print

    def update(self, preds: Any, target: Any) -> None:
        self.total += preds.sum()
        self.table += 1
        self.seen += len(target)
        self.parts["a"].append(0.5)

    def compute(self) -> Any:
        return {"total": self.total, "seen": self.seen, "table": self.table.sum(), **self.parts}

    def reset(self) -> None:
        self.__init__()


class Own:
    """A metric with a state_dict."""

    def __init__(self) -> None:
        self.n = 0

    def update(self, preds: Any, target: Any) -> None:
        self.n += 1

    def compute(self) -> int:
        return self.n

    def reset(self) -> None:
        self.n = 0

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


MAKERS = [
    Attributes,
    Own,
    lambda: MulticlassAccuracy(num_classes=3),
    lambda: torchmetrics.MetricCollection([MulticlassPrecision(3), MulticlassF1Score(3)]),
    lambda: torchmetrics.wrappers.ClasswiseWrapper(MulticlassAccuracy(3, average=None)),
    lambda: torchmetrics.SpearmanCorrCoef(),
]


def batches(metric: Any) -> list[tuple[Any, Any]]:
    chance = torch.Generator().manual_seed(2)
    if isinstance(metric, torchmetrics.SpearmanCorrCoef):
        return [tuple(torch.randn(2, 6, generator=chance)) for _ in range(4)]
    return [
        (torch.randn(6, 3, generator=chance), torch.randint(3, (6,), generator=chance))
        for _ in range(4)
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save")
def test_a_new_metric_goes_on_exactly_from_the_saved_state(make: Any) -> None:
    metric, fresh = make(), make()
    given = batches(metric)
    for batch in given[:2]:
        metric.update(*batch)
    state = state_of(metric)
    assert is_data(state)
    for batch in given[2:]:
        metric.update(*batch)
    restore(fresh, state)
    for batch in given[2:]:
        fresh.update(*batch)
    assert same(fresh.compute(), metric.compute())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef` will save")
def test_going_back_in_the_same_object_forgets_what_came_after(make: Any) -> None:
    metric = make()
    given = batches(metric)
    metric.update(*given[0])
    metric.update(*given[1])
    state, expected = state_of(metric), state_of(metric)
    metric.update(*given[2])
    metric.compute()
    restore(metric, state)
    assert same(state_of(metric), expected)
    metric.update(*given[3])
    assert same(state, expected), "a saved state must not change with the metric"


def test_another_metrics_state_is_refused() -> None:
    metric = torchmetrics.MetricCollection([MulticlassPrecision(3)])
    metric.update(torch.randn(6, 3), torch.randint(3, (6,)))
    with pytest.raises(CheckpointError, match="resume with the metrics of the saved run"):
        restore(MulticlassAccuracy(3), state_of(metric))


def test_what_cannot_be_saved_is_said(caplog: pytest.LogCaptureFixture) -> None:
    metric = Attributes()
    metric.handle = object()
    with caplog.at_level(logging.WARNING, "hatbus"):
        assert "handle" not in state_of(metric)
    assert "Attributes.handle (object) is not saved" in caplog.text


WRAPPERS: dict[str, Any] = {
    "running mean": lambda: torchmetrics.RunningMean(window=3),
    "running sum": lambda: torchmetrics.wrappers.Running(torchmetrics.SumMetric(), window=3),
    "extremes": lambda: torchmetrics.wrappers.MinMaxMetric(torchmetrics.MeanMetric()),
    "tracker": lambda: torchmetrics.wrappers.MetricTracker(
        torchmetrics.MeanMetric(), maximize=True
    ),
    "tracker in a collection": lambda: torchmetrics.MetricCollection(
        {"x": torchmetrics.wrappers.MinMaxMetric(torchmetrics.MeanMetric())}
    ),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_what_a_wrapper_counts_outside_its_states_goes_on_too(kind: str) -> None:
    whole, fresh = WRAPPERS[kind](), WRAPPERS[kind]()
    for value in (1.0, 5.0, 3.0, 9.0):
        if kind == "tracker":
            whole.increment()
        whole.update(torch.tensor(value))
        whole.compute()
    state = state_of(whole)
    assert is_data(state)
    restore(fresh, state)
    for metric in (whole, fresh):
        metric.update(torch.tensor(2.0))
    assert same(fresh.compute(), whole.compute())
    if kind == "tracker":
        assert same(list(fresh.compute_all()), list(whole.compute_all()))


def test_an_option_of_a_metric_is_the_new_runs() -> None:
    saved = torchmetrics.RunningMean(window=3)
    saved.update(1.0)
    beside = state_of(saved)[""]["beside the states"]
    assert beside == {"_num_vals_seen": 1}


class Windowed:
    """As torcheval's windows: its own state leaves out where the next value goes."""

    def __init__(self) -> None:
        self._state_name_to_default = {"values": torch.zeros(2)}
        self.values, self.next_inserted = torch.zeros(2), 0

    def update(self, value: float) -> None:
        self.values[self.next_inserted % 2] = value
        self.next_inserted += 1

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state.keys() == {"values"}
        self.values = state["values"].clone()


def test_the_place_in_a_window_of_torcheval_goes_on_too() -> None:
    whole, fresh = Windowed(), Windowed()
    whole.update(1.0)
    restore(fresh, state_of(whole))
    for metric in (whole, fresh):
        metric.update(2.0)
    assert fresh.values.tolist() == whole.values.tolist() == [1.0, 2.0]


class OfNumpy:
    """A metric that counts in numpy's own numbers."""

    def __init__(self) -> None:
        self.total: Any = 0
        self.rows: list[Any] = []

    def update(self, value: float) -> None:
        self.total = self.total + np.float32(value)
        self.rows.append(np.array([value], np.float16))


def test_numpys_numbers_come_back_as_numpys() -> None:
    whole, fresh = OfNumpy(), OfNumpy()
    whole.update(0.1)
    restore(fresh, state_of(whole))
    for metric in (whole, fresh):
        metric.update(0.2)
    assert type(fresh.total) is np.float32
    assert fresh.total == whole.total
    assert [row.dtype for row in fresh.rows] == [np.float16] * 2


def test_of_a_metric_that_was_reset_only_what_lasts_is_kept() -> None:
    extremes = torchmetrics.wrappers.MinMaxMetric(torchmetrics.MeanMetric())
    for value in (1.0, 5.0):
        extremes.update(torch.tensor(value))
        extremes.compute()
    kept = lasting_state(extremes)
    assert kept is not None
    assert not any(part["states"] for part in kept.values())
    fresh = torchmetrics.wrappers.MinMaxMetric(torchmetrics.MeanMetric())
    restore(fresh, kept)
    for metric in (extremes, fresh):
        metric.reset()
        metric.update(torch.tensor(3.0))
    assert fresh.compute() == extremes.compute()
    assert lasting_state(torchmetrics.CatMetric()) is None


class KeepsAll:
    """As ignite's EpochMetric: its own load fills the lists that are there, and no others."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"__per_rank": [{"values": self.values}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        (saved,) = state["__per_rank"]
        for place, value in enumerate(saved["values"]):
            self.values[place] = value
        assert len(self.values) == len(saved["values"])


KeepsAll.__module__ = "ignite.metrics.epoch_metric"


def test_a_list_of_ignite_is_as_long_as_the_saved_one_before_it_is_filled() -> None:
    whole, fresh = KeepsAll(), KeepsAll()
    whole.values += [torch.ones(2), torch.zeros(1)]
    state = state_of(whole)
    for metric in (fresh, whole):
        metric.values += [torch.ones(1)]
        restore(metric, state)
    assert [value.tolist() for value in fresh.values] == [[1.0, 1.0], [0.0]]
    assert len(whole.values) == 2
