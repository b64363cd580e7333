"""From what a user wrote for ``metrics`` to named metric objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from hatbus.discovery import build as build_config
from hatbus.errors import PluginError
from hatbus_monitor.metric_values import has_get
from hatbus_monitor.metrics import Accuracy, LossShow, Mean


@runtime_checkable
class Metric(Protocol):
    """Anything that accumulates: a ``torchmetrics.Metric``, one of ours, one of yours."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Adds a batch."""

    def compute(self) -> Any:
        """The value since the last reset."""

    def reset(self) -> None:
        """Forgets everything."""


OWN: Final[dict[str, Callable[..., Metric]]] = {
    "accuracy": Accuracy,
    "mean": Mean,
    "loss": lambda name="loss": Mean(name),
}
"""The metrics that a job can name with one word."""
KNOWN: Final = {**OWN, "Accuracy": Accuracy, "Mean": Mean, "LossShow": LossShow}
"""The same by their classes' names, as in HAT's configs."""

ACCEPTED: Final = (
    "accepted: an object with update, reset and compute (or get, as HAT's), "
    f"one of {', '.join(map(repr, OWN))}, 'module:Class', or a table with type = one of these"
)


def named_metrics(given: Any) -> dict[str, Metric]:
    """Metrics by the name that each is published under.

    Args:
        given: one metric, a sequence of metrics, or a mapping from names; each a metric, a word
            of ``OWN``, ``"module:Class"``, or a mapping with ``type`` and further arguments.

    Raises:
        PluginError: something that is no metric, or two metrics of one name.
    """
    if isinstance(given, Mapping) and "type" not in given and not isinstance(given, Metric):
        return {str(name): build(config) for name, config in given.items()}
    several = isinstance(given, Sequence) and not isinstance(given, str)
    found: dict[str, Metric] = {}
    for config in given if several else [given]:
        metric = build(config)
        name = name_of(metric)
        if name in found:
            raise PluginError(
                f"metric_updater: two metrics named {name!r}; give them names: "
                f"metrics = {{first = ..., second = ...}}"
            )
        found[name] = metric
    return found


def build(config: Any) -> Metric:
    """One metric from what stands for it.

    Raises:
        PluginError: it stands for no metric.
    """
    if isinstance(config, Mapping) and not isinstance(config, Metric):
        options = dict(config)
        made = _made(options.pop("type", None), options)
    elif isinstance(config, (str, type)):
        made = _made(config, {})
    else:
        made = config
    missing = [n for n in ("update", "compute", "reset") if not callable(getattr(made, n, None))]
    if missing == ["compute"] and has_get(made):
        return made  # type: ignore[no-any-return]  # one of HAT's
    if missing:
        raise PluginError(f"metric_updater: {made!r} has no {' and no '.join(missing)}; {ACCEPTED}")
    return made  # type: ignore[no-any-return]  # checked just above


def name_of(metric: object) -> str:
    """The metric's ``name``, else its class name in snake case."""
    name = getattr(metric, "name", None)
    if isinstance(name, str) and name:
        return name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(metric).__name__).lower()


def move(metrics: Iterable[Metric], device: Any) -> None:
    """Moves every metric that can be moved to the device."""
    for metric in metrics:
        to = getattr(metric, "to", None)
        if to is not None:
            to(device)


def _made(kind: Any, options: dict[str, Any]) -> Any:
    if not isinstance(kind, str) and not callable(kind):
        raise PluginError(f"metric_updater: {kind!r} is no type of metric; {ACCEPTED}")
    return build_config({"type": kind, **options}, "metric_updater: metrics", KNOWN)
