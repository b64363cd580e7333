"""The value that decides which checkpoint is best: a published one, or that of a metric object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hatbus.bus import one_number
from hatbus.discovery import build, is_config
from hatbus.errors import JobError, PluginError, did_you_mean
from hatbus.log import log
from hatbus.option_values import text

if TYPE_CHECKING:
    from hatbus.loop import Context

_TRAINING = "train/"
_LOSS = "loss"


class Judged:
    """Which value is looked at.

    Args:
        key: name of a published value; without a "/" also its last part, as ``"NDS"`` for
            ``"val/NDS"``, of what is not published by the training.
        metric: an object with ``compute()`` (torchmetrics) or ``get()`` (HAT), or a config of one.
            The published value of its name is taken, where there is one.

    With both, ``key`` is one of the names that the metric gives. With neither it is the first of
    the trainer's ``val_metrics``, else the only value of the validation that is no loss.

    Raises:
        JobError: one of them cannot be used.
    """

    def __init__(self, key: str | None, metric: Any) -> None:
        if key is not None:
            text("checkpoint: monitor_metric_key", key)
        self.key = key
        self.is_config = is_config(metric)  # nobody updates the object that is made of it
        self.metric = build(metric, "checkpoint: best_refer_metric") if self.is_config else metric
        self._told = ""
        self._check(self.metric)

    @property
    def label(self) -> str:
        """What the value is called."""
        if self.key is not None or self.metric is None:
            return self.key or "the validation's metric"
        return metric_name(self.metric) if self.is_config else type(self.metric).__name__

    def name_in(self, ctx: Context) -> str | None:
        """The published name that is meant; None when it is not there."""
        latest = ctx.latest
        wanted = self.key
        if wanted is None and self.metric is not None:
            wanted = metric_name(self.metric)
        if wanted is None:
            return self._only_one(ctx)
        if wanted in latest and self.key is not None:
            return wanted
        found = [name for name in latest if _is_meant(wanted, name)]
        if len(found) > 1 and self.key is not None:
            both = " and ".join(map(repr, found[:2]))
            raise JobError(f"checkpoint: monitor_metric_key {wanted!r} is {both}; give the whole")
        if found:
            self._tell(found[0], wanted)
            return found[0]
        return None

    @property
    def is_published(self) -> bool:
        """Whether only a published value is looked at, and not what an object has found."""
        return self.key is not None or self.metric is None or self.is_config

    def is_among(self, names: Iterable[str]) -> bool:
        """Whether the value is among what was just published."""
        wanted = self.key or (None if self.metric is None else metric_name(self.metric))
        if wanted is None:
            return any("/" in name and not name.startswith(_TRAINING) for name in names)
        return any(name == wanted or _is_meant(wanted, name) for name in names)

    def value(self, ctx: Context) -> float | None:
        """The value now; None when there is none."""
        name = self.name_in(ctx)
        if name is not None:
            return one_number(f"checkpoint: metric {name!r}", ctx.latest[name])
        if self.metric is None or self.is_config:
            return None
        return self._of_object()

    def _of_object(self) -> float | None:
        values = values_of(self.metric)
        if self.key is not None and self.key not in values:
            known = did_you_mean(self.key, values)
            raise JobError(f"checkpoint: {type(self.metric).__name__} gives no {self.key!r}{known}")
        if not values:
            return None
        name = self.key or next(iter(values))
        if len(values) > 1 and not self.key:
            if not hasattr(self.metric, "get"):
                raise PluginError(_several(type(self.metric).__name__, values))
            self._tell(name, f"the first of {', '.join(map(repr, values))}")
        found = values[name]
        return None if found is None else one_number("checkpoint: best_refer_metric", found)

    def _only_one(self, ctx: Context) -> str | None:
        for metric in ctx.val_metrics if isinstance(ctx.val_metrics, (list, tuple)) else ():
            found = [name for name in ctx.latest if _is_meant(metric_name(metric), name)]
            if found:
                self._tell(found[0], "the first of val_metrics")
                return found[0]
        inside = [n for n in single(ctx.latest) if "/" in n and not n.startswith(_TRAINING)]
        metrics = [n for n in inside if _LOSS not in n.lower() and n.startswith("val")] or inside
        if len(metrics) == 1:
            self._tell(metrics[0], "the validation's only one")
            return metrics[0]
        if metrics and self._told != "several":
            self._told = "several"
            log.warning(
                "checkpoint: mode is given and no metric, and there are several: %s; give "
                "monitor_metric_key, or no checkpoint is best",
                ", ".join(map(repr, metrics)),
            )
        return None

    def _tell(self, name: str, why: str) -> None:
        if self._told != name:
            self._told = name
            log.info("checkpoint: best goes by %r (%s)", name, why)

    @staticmethod
    def _check(metric: Any) -> None:
        if hasattr(metric, "compute_groups") and len(metric) > 1:  # a MetricCollection
            raise JobError(_several(type(metric).__name__, metric))
        if metric is not None and not (hasattr(metric, "compute") or hasattr(metric, "get")):
            raise JobError(
                f"checkpoint: best_refer_metric is a {type(metric).__name__}; "
                "accepted: an object with compute() or get(), or dict(type=...) of one"
            )


def metric_name(metric: Any) -> str:
    """The name that a metric is published under: its own, else its class's in snake case."""
    name = getattr(metric, "name", None)
    if isinstance(name, str) and name:
        return name
    if isinstance(name, (list, tuple)) and name:
        return str(name[0])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(metric).__name__).lower()


def values_of(metric: Any) -> dict[str, Any]:
    """What a metric gives, by name: HAT's ``get()`` says names and values."""
    if hasattr(metric, "get") and not isinstance(metric, Mapping):
        names, values = metric.get()
        return {names: values} if isinstance(names, str) else dict(zip(names, values, strict=True))
    value = metric.compute()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return {f"{metric_name(metric)}_{n}": one for n, one in enumerate(value)}
    return {metric_name(metric): value}


def single(latest: Mapping[str, Any]) -> list[str]:
    """The names of single numbers."""
    return [n for n, v in latest.items() if not isinstance(v, torch.Tensor) or v.numel() == 1]


def _is_meant(wanted: str, name: str) -> bool:
    """Whether a bare name is the last part of a published one, which is not the training's."""
    is_last = "/" not in wanted and name.rpartition("/")[2] == wanted
    return is_last and not name.startswith(_TRAINING) and "/" in name


def _several(kind: str, values: Iterable[Any]) -> str:
    return (
        f"checkpoint: best_refer_metric is a {kind} of {', '.join(map(repr, values))}; accepted: "
        "one metric: take one out of it, or name a published value (monitor_metric_key)"
    )
