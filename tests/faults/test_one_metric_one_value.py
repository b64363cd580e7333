"""Every published name has the value of one metric, whoever else counts in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from hatbus import Trainer
from hatbus.callbacks import GradMonitor, MetricUpdater, StatsMonitor, Validation
from hatbus.errors import PluginError
from hatbus_monitor.metrics import Mean


def target(metrics: Sequence[Any], batch: Any, model_outs: Any) -> None:
    for metric in metrics:
        metric.update(batch[1].mean())


class Count(Mean):
    """How often it was updated."""

    def compute(self) -> torch.Tensor:
        return torch.tensor(float(self.count))


def data(value: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(2, 1), torch.full((2, 1), float(value)))] * 4


class Net(torch.nn.Linear):
    def forward(self, inputs: torch.Tensor, task: str | None = None) -> torch.Tensor:
        return super().forward(inputs)


def trainer(
    plugins: Sequence[object] | Mapping[str, object] = (), loaders: Any = None, **options: Any
) -> Trainer:
    model = Net(1, 1)
    loss = torch.nn.functional.mse_loss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Trainer(model, optimizer, loaders or data(1), loss, plugins, **options)


def end_of(run: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in run.fit(num_epochs=1).latest.items()}


def test_an_updater_of_each_task_counts_the_trainers_metrics_by_itself() -> None:
    metrics = [Mean("y"), Count("count")]
    run = trainer(loaders={"det": data(1), "seg": data(5)}, train_metrics=metrics)
    for task in ("det", "seg"):
        run.bus.register(MetricUpdater(target), f"{task}_metrics", overrides={"tasks": [task]})
    assert end_of(run) == {
        "train/det/y": 1,
        "train/det/count": 4,
        "train/seg/y": 5,
        "train/seg/count": 4,
    }
    assert float(metrics[0].compute()) == 1, "the first counts in the trainer's own objects"


def test_a_second_fit_goes_on_in_the_same_copies() -> None:
    plugins = {
        "a": MetricUpdater(target, log_prefix="a"),
        "b": MetricUpdater(target, log_prefix="b"),
    }
    run = trainer(plugins, train_metrics=[Count("count")])
    run.fit(num_steps=2)
    assert end_of(run) == {"a/count": 4, "b/count": 4}


@pytest.mark.parametrize("of_trainer", [False, True])
def test_a_metric_in_training_and_in_a_validation_is_two(
    of_trainer: bool, caplog: pytest.LogCaptureFixture
) -> None:
    one = Mean("y")
    given = None if of_trainer else [one]
    options = {"train_metrics": [one], "val_metrics": [one]} if of_trainer else {}
    inner = MetricUpdater(target, given, step_log_freq=0)
    checks = Validation(data(5), callbacks=[inner], val_interval=2, interval_by="step")
    run = trainer([MetricUpdater(target, given, step_log_freq=0), checks], **options)
    assert end_of(run) == {"train/y": 1, "val/y": 5}
    assert caplog.text.count("metric 'y' is in use by another updater") == (not of_trainer)


def test_one_updater_in_training_and_in_a_validation_is_refused_before_training() -> None:
    one = MetricUpdater(target, [Mean("y")])
    run = trainer({"mine": one, "validation": Validation(data(5), callbacks=[one])})
    with pytest.raises(PluginError, match="is the object that the training has as 'mine'"):
        run.fit(num_epochs=1)
    assert run.ctx.position.global_step == 0


def test_two_updaters_of_one_name_publish_two(caplog: pytest.LogCaptureFixture) -> None:
    plugins = {"a": MetricUpdater(target, [Mean("y")]), "b": MetricUpdater(target, [Count("y")])}
    assert end_of(trainer(plugins)) == {"train/y": 1, "train/b/y": 4}
    assert "'a' and 'b' would both publish 'train/y'; 'b' publishes 'train/b/y'" in caplog.text


def test_two_updaters_of_one_validation_publish_two(caplog: pytest.LogCaptureFixture) -> None:
    callbacks = [MetricUpdater(target, [kind("y")]) for kind in (Mean, Count)]
    checks = Validation(data(5), callbacks=callbacks, val_interval=2, interval_by="step")
    assert end_of(trainer([checks])) == {"val/y": 5, "val/metric_updater_2/y": 4}
    assert caplog.text.count("would both publish") == 1, "there were two validations"


def test_metrics_are_free_again_when_a_run_is_over(caplog: pytest.LogCaptureFixture) -> None:
    one = Mean("y")
    for _ in range(2):
        trainer([MetricUpdater(target, [one])]).fit(num_epochs=1)
        assert float(one.compute()) == 1
    assert "in use" not in caplog.text


@pytest.mark.parametrize("make", [GradMonitor, StatsMonitor])
def test_two_monitors_publish_their_own(make: Any) -> None:
    latest = end_of(trainer({"one": make(log_freq=1), "two": make(log_freq=3)}))
    mine = {name for name in latest if not name.startswith(("two/", "lr/"))}
    assert {f"two/{name}" for name in mine} <= set(latest)
    assert mine
