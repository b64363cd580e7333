"""Pairs with metrics, through ``metric_updater``: published in every step, reset in every epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hatbus.callbacks import MetricUpdater, Validation
from hatbus_monitor.update_functions import usual
from works_with.pair import Pair
from works_with.small import batches

KIND = "Metrics"
Update = Callable[..., None]


def updated(
    make: Callable[[], Any], update: Update = usual, reset: str = "epoch"
) -> Callable[[Path], dict[str, Any]]:
    """A run with these metrics, in the training and in its validation."""

    def parts(_: Path) -> dict[str, Any]:
        updater = MetricUpdater(update, make(), reset_metrics_by=reset, step_log_freq=1)
        inner = MetricUpdater(update, make())
        return {
            "plugins": {"metrics": updater, "validation": Validation(batches(2), None, [inner])}
        }

    return parts


def each(metrics: Any) -> list[Any]:
    return list(metrics.values() if isinstance(metrics, dict) else metrics)


def flat(metrics: Any, batch: Any, model_outs: torch.Tensor) -> None:
    """Outputs and target as vectors."""
    for metric in each(metrics):
        metric.update(model_outs.detach().flatten(), batch[1].flatten())


def signs(metrics: Any, batch: Any, model_outs: torch.Tensor) -> None:
    """Two classes: whether it is more than 0."""
    for metric in each(metrics):
        metric.update(model_outs.detach().flatten().sigmoid(), (batch[1] > 0).long().flatten())


def losses_alone(metrics: Any, batch: Any, model_outs: Any, losses: Any) -> None:
    """Of a metric that takes one value."""
    for metric in each(metrics):
        metric.update(losses["loss"].detach())


def tracked(metrics: Any, batch: Any, model_outs: torch.Tensor) -> None:
    """A tracker begins anew with every third batch."""
    for metric in each(metrics):
        if metric.n_steps == 0 or int(metric[-1].total) >= 12:
            metric.increment()
        metric.update(model_outs.detach(), batch[1])


def of_torchmetrics() -> list[Pair]:
    """Plain ones, and those that keep more than their states."""

    def add(
        name: str, make: Callable[[Any], Any], update: Update = flat, reset: str = "epoch"
    ) -> Pair:
        def made() -> Any:
            import torchmetrics

            return [make(torchmetrics)]

        return Pair(KIND, "torchmetrics", name, updated(made, update, reset))

    return [
        add("MeanSquaredError", lambda tm: tm.MeanSquaredError()),
        add("R2Score", lambda tm: tm.R2Score()),
        add("PearsonCorrCoef", lambda tm: tm.PearsonCorrCoef()),
        add("SpearmanCorrCoef (keeps all values)", lambda tm: tm.SpearmanCorrCoef()),
        add("AUROC", lambda tm: tm.AUROC("binary"), signs),
        add("Accuracy", lambda tm: tm.Accuracy("binary"), signs),
        add("MeanMetric", lambda tm: tm.MeanMetric(), losses_alone),
        add("CatMetric", lambda tm: tm.CatMetric(), losses_alone),
        add("MetricCollection", collection),
        add("BootStrapper", lambda tm: tm.wrappers.BootStrapper(tm.MeanSquaredError(), 3)),
        add("Running", lambda tm: tm.wrappers.Running(tm.MeanSquaredError(), 3)),
        add("RunningMean", lambda tm: tm.RunningMean(window=3), losses_alone),
        add("MinMaxMetric", lambda tm: tm.wrappers.MinMaxMetric(tm.MeanSquaredError())),
        add("MetricTracker", lambda tm: tm.wrappers.MetricTracker(tm.MeanSquaredError()), tracked),
        Pair(KIND, "torchmetrics", "MetricCollection as best_refer_metric", best_of_collection),
    ]


def collection(tm: Any) -> Any:
    return tm.MetricCollection([tm.MeanSquaredError(), tm.MeanAbsoluteError()], prefix="of_")


def best_of_collection(_: Path) -> dict[str, Any]:
    import torchmetrics

    updater = MetricUpdater(flat, [collection(torchmetrics)])
    refer = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()], prefix="of_")
    return {
        "plugins": {"validation": Validation(batches(2), None, [updater])},
        "checkpoint": {"mode": "min", "best_refer_metric": refer},
    }


def of_torcheval() -> list[Pair]:
    """Windows included."""

    def add(name: str, update: Update, **options: Any) -> Pair:
        def make() -> Any:
            import torcheval.metrics

            return [getattr(torcheval.metrics, name)(**options)]

        return Pair(KIND, "torcheval", name, updated(make, update))

    window = {"max_num_updates": 3}
    return [
        add("MeanSquaredError", flat),
        add("R2Score", flat),
        add("BinaryAUROC", signs),
        add("BinaryAccuracy", signs),
        add("WindowedMeanSquaredError", flat, **window),
        add("WindowedBinaryAUROC", signs, max_num_samples=10),
    ]


def of_ignite() -> list[Pair]:
    """Fed by ``usual``."""

    def add(name: str, make: Callable[[Any], Any]) -> Pair:
        def made() -> Any:
            import ignite.metrics

            return [make(ignite.metrics)]

        return Pair(KIND, "pytorch-ignite", name, updated(made))

    def spread(outputs: torch.Tensor, target: torch.Tensor) -> float:
        return float((outputs - target).abs().max())

    return [
        add("MeanSquaredError", lambda m: m.MeanSquaredError()),
        add("MeanAbsoluteError", lambda m: m.MeanAbsoluteError()),
        add("EpochMetric", lambda m: m.EpochMetric(spread, check_compute_fn=False)),
        add("RunningAverage", lambda m: m.RunningAverage(m.MeanSquaredError(), alpha=0.7)),
        add("RunningAverage of the loss", lambda m: m.RunningAverage(output_transform=float)),
        add("a sum of metrics", lambda m: m.MeanSquaredError() + m.MeanAbsoluteError()),
    ]


class OfSklearn:
    """Keeps outputs and targets, and gives them to a function of sklearn.metrics."""

    def __init__(self, function: str) -> None:
        self.name = self.function = function
        self.reset()

    def reset(self) -> None:
        self.outputs: list[np.ndarray[Any, Any]] = []
        self.target: list[np.ndarray[Any, Any]] = []

    def update(self, outputs: torch.Tensor, target: torch.Tensor) -> None:
        self.outputs.append(outputs.numpy())
        self.target.append(target.numpy())

    def compute(self) -> Any:
        import sklearn.metrics

        function = getattr(sklearn.metrics, self.function)
        return function(np.concatenate(self.target), np.concatenate(self.outputs))


def of_sklearn() -> list[Pair]:
    """Its functions, in a metric that keeps numpy's arrays."""
    note = "in an object with update, compute and reset"
    return [
        Pair(KIND, "scikit-learn", name, updated(lambda n=name: [OfSklearn(n)], flat), note)
        for name in ("r2_score", "mean_absolute_error", "max_error")
    ]


PAIRS = [*of_torchmetrics(), *of_torcheval(), *of_ignite(), *of_sklearn()]
