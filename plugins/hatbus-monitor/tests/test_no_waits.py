"""No plugin reads a value from the device before its interval: seen by tensors that count reads.

Batches, outputs, losses and gradients are such tensors, and what is computed from them is, too.
(``tests/gpu`` asks a real device the same.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from hatbus import hookimpl, plugin
from hatbus_monitor.csv_log import CsvLog
from hatbus_monitor.grad_monitor import GradMonitor
from hatbus_monitor.jsonl_log import JsonlLog
from hatbus_monitor.metric_updater import MetricUpdater
from hatbus_monitor.nan_guard import NanGuard
from hatbus_monitor.progress import Progress
from hatbus_monitor.stats_monitor import StatsMonitor
from hatbus_monitor.update_functions import usual

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"}


class OnDevice(torch.Tensor):
    """A tensor that notes when its value is read, as a host would have to wait for it."""

    step = -1
    read_at: ClassVar[list[int]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in READS:
            cls.read_at.append(cls.step)
        return super().__torch_function__(func, types, args, kwargs or {})


@plugin(stage="train")
class OnlyOnDevice:
    """Gradients are such tensors, too; every loss is published."""

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        OnDevice.step = global_step_id

    @hookimpl
    def on_backward_end(self, ctx: Any, model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = parameter.grad.as_subclass(OnDevice)
        assert all(type(loss) is OnDevice for loss in ctx.losses.values())
        ctx.log({name: loss.detach() for name, loss in ctx.losses.items()})


@pytest.fixture(autouse=True)
def _nothing_read() -> Iterator[None]:
    OnDevice.read_at, OnDevice.step = [], -1
    yield
    OnDevice.read_at = []


EVERY_FIFTH = [4, 9]
CASES: dict[str, tuple[Callable[[Path], object], list[int]]] = {
    "metric_updater": (lambda _: MetricUpdater(usual, ["accuracy", "loss"]), []),
    "metrics by log": (
        lambda _: MetricUpdater(usual, ["loss"], step_log_freq=5, reset_metrics_by="log"),
        [],
    ),
    "stats_monitor": (lambda _: StatsMonitor(log_freq=5), []),
    "progress": (lambda _: Progress(plain_interval=1e6, display="plain"), [11]),
    "jsonl_log": (lambda folder: JsonlLog(folder / "log", flush_every=5), [*EVERY_FIFTH, 11]),
    "csv_log": (lambda folder: CsvLog(folder / "log", flush_every=5), [*EVERY_FIFTH, 11]),
    "grad_monitor": (lambda _: GradMonitor(log_freq=5, weights=True), EVERY_FIFTH),
    "nan_guard": (lambda _: NanGuard(check_every=5), EVERY_FIFTH),
}


@pytest.mark.parametrize("name", CASES)
def test_a_value_is_read_at_the_plugins_own_interval_only(
    trainer: Any, data: Any, tmp_path: Path, name: str
) -> None:
    make, due = CASES[name]
    batches = [(x.as_subclass(OnDevice), y.as_subclass(OnDevice)) for x, y in data(12)]
    trainer([OnlyOnDevice(), make(tmp_path)], batches, nan="ignore").fit(num_epochs=1)
    assert sorted(set(OnDevice.read_at)) == due


def test_a_plugin_that_reads_in_every_step_is_found(trainer: Any, data: Any) -> None:
    class Reads:
        @hookimpl
        def on_batch_end(self, losses: Any) -> None:
            losses["loss"].item()

    batches = [(x.as_subclass(OnDevice), y.as_subclass(OnDevice)) for x, y in data(3)]
    trainer([OnlyOnDevice(), Reads()], batches, nan="ignore").fit(num_epochs=1)
    assert sorted(set(OnDevice.read_at)) == [0, 1, 2]
