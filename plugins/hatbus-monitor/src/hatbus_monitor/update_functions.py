"""Ready ``metric_update_func``s for ``MetricUpdater``, and builders for others.

A function gets ``(metrics, batch, model_outs)``, and by name ``losses``, ``task`` or ``ctx`` when
it asks for them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any

from hatbus.data import fields_of, samples_in
from hatbus.errors import PluginError, did_you_mean
from hatbus_monitor.metric_state import is_ignites
from hatbus_monitor.metrics import Accuracy, Mean

UpdateFunction = Callable[..., None]
Path = int | str | Sequence[int | str] | None
"""An index, a key, several of them from the outside in, or None for the whole."""


def usual(metrics: Any, batch: Any, model_outs: Any, losses: Mapping[str, Any]) -> None:
    """Gives a ``Mean`` the loss of its name (else the sum), any other metric outputs and target.

    A batch's loss counts as often as the batch has samples, which is exact for losses that are a
    mean over the batch. A batch in which nothing has a length counts as one sample, an empty one
    (every sample was dropped) not at all.
    """
    size = 1 if (found := samples_in(batch)) is None else found
    if size == 0:
        return
    for metric in metrics.values() if isinstance(metrics, dict) else metrics:
        if is_ignites(metric):
            update_ignites(metric, (model_outs, target_in(batch)), losses)
            continue
        if isinstance(metric, Accuracy) or not isinstance(metric, Mean):
            metric.update(model_outs, target_in(batch))
            continue
        loss = losses[metric.name] if metric.name in losses else sum(losses.values())
        kind: Any = type(metric)
        weight = (size,) if _takes_weight(kind) else ()
        metric.update(loss, *weight)


def target_in(batch: Any) -> Any:
    """The second entry of a batch.

    Raises:
        PluginError: it has none.
    """
    try:
        return batch[1]
    except (KeyError, IndexError, TypeError) as error:
        raise PluginError(
            f"metric_updater: a batch is a {type(batch).__name__}, not a pair (inputs, target); "
            "say where outputs and target are: metric_update_func = by_index(pred=..., label=...)"
        ) from error


def update_ignites(metric: Any, pair: tuple[Any, Any], losses: Mapping[str, Any]) -> None:
    """Gives a metric of ignite outputs and target as a pair.

    ``RunningAverage`` is fed by an engine there: the metric that it averages gets the pair first;
    without one it averages the loss.
    """
    if type(metric).__name__ != "RunningAverage":
        metric.update(pair)
    elif metric.src is None:
        metric.update(metric._output_transform(sum(losses.values())))  # noqa: SLF001 - ignite's way
    else:
        metric.src.update(pair)
        metric.update(pair)


@cache
def _takes_weight(kind: Any) -> bool:
    """Whether ``update`` takes a weight; one of a user's own may not."""
    return "weight" in signature(kind.update).parameters


def by_index(pred: Any = None, label: Any = 1) -> UpdateFunction:
    """Updates with ``(prediction, label)`` found by index or key.

    Args:
        pred: path into the model's outputs: an index, a key, or several from the outside in; None
            for the outputs as they are. A list of paths holds one per metric.
        label: the same into the batch; ``()`` for metrics that take no label.
    """

    def update(metrics: Any, batch: Any, model_outs: Any) -> None:
        """Updates every metric."""
        every = metric_objects(metrics)
        for metric, p, t in zip(
            every, per_metric(pred, len(every)), per_metric(label, len(every)), strict=True
        ):
            found = entry(model_outs, p, "the model's outputs")
            if t == ():
                metric.update(found)
            else:
                metric.update(found, entry(batch, t, "the batch"))

    return update


def by_regex(pred: str | list[str], label: str | list[str | None] | None = None) -> UpdateFunction:
    r"""Updates with ``(prediction, label)`` found by regular expressions over flattened names.

    Names of nested dicts, lists and tuples are joined by "_": the second entry of
    ``{"head": [a, b]}`` is ``head_1``; a tensor alone has the name "".

    Args:
        pred: pattern that matches (from the start) one name in the model's outputs, or a list
            with one per metric.
        label: the same in the batch; None for metrics that take no label.

    >>> by_regex(pred=".*logits$", label="^1$")  # doctest: +ELLIPSIS
    <function by_regex...
    """
    for pattern in [*_patterns(pred), *_patterns(label)]:
        _compiled(pattern)

    def update(metrics: Any, batch: Any, model_outs: Any) -> None:
        """Updates every metric."""
        every = metric_objects(metrics)
        outs, labels = flatten(model_outs), flatten(batch) if label is not None else {}
        for metric, p, t in zip(
            every, per_metric(pred, len(every)), per_metric(label, len(every)), strict=True
        ):
            found = [matching(outs, p, "the model's outputs")]
            if t is not None:
                found.append(matching(labels, t, "the batch"))
            metric.update(*found)

    return update


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested dicts, lists, tuples and dataclasses by their path, joined by "_"."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif hasattr(value, "_fields"):
        items = zip(value._fields, value, strict=True)
    elif isinstance(value, (list, tuple, deque)):
        items = enumerate(value)
    elif (fields := fields_of(value)) is not None:
        items = fields.items()
    else:
        return {name: value}
    found: dict[str, Any] = {}
    for key, one in items:
        found.update(flatten(one, f"{name}_{key}" if name else str(key)))
    return found


def matching(names: Mapping[str, Any], pattern: str, where: str) -> Any:
    """The one entry whose name matches.

    Raises:
        PluginError: none or several do.
    """
    hits = [name for name in names if _compiled(pattern).match(name)]
    if len(hits) != 1:
        fault = f"matches {', '.join(map(repr, hits))}" if hits else "matches nothing"
        known = ", ".join(map(repr, names))
        raise PluginError(
            f"metric_updater: pattern {pattern!r} {fault} in {where}; accepted: a pattern that "
            f"matches one of {known}"
        )
    return names[hits[0]]


def entry(value: Any, path: Path, where: str) -> Any:
    """The part of a nested value that a path leads to.

    Raises:
        PluginError: the path leads nowhere.
    """
    if path is None:
        return value
    keys = [path] if isinstance(path, (int, str)) else path
    for key in keys:
        fields: Any = fields_of(value)
        try:
            value = (value if fields is None else fields)[key]
        except (KeyError, IndexError, TypeError) as error:
            known = did_you_mean(str(key), map(str, value)) if isinstance(value, Mapping) else ""
            raise PluginError(
                f"metric_updater: no {key!r} in {where} ({type(value).__name__}){known}"
            ) from error
    return value


def metric_objects(metrics: Any) -> list[Any]:
    """The metrics of a list or of a mapping."""
    return list(metrics.values()) if isinstance(metrics, dict) else list(metrics)


def per_metric(given: Any, count: int) -> list[Any]:
    """One entry per metric: the list itself, or the one entry for all.

    Raises:
        PluginError: the list has another length.
    """
    if not isinstance(given, list):
        return [given] * count
    if len(given) != count:
        raise PluginError(
            f"metric_updater: {len(given)} entries in {given!r} for {count} metrics; accepted: "
            "one entry for all (no list), or a list with one per metric"
        )
    return given


def _patterns(given: Any) -> list[str]:
    every = given if isinstance(given, list) else [given]
    return [pattern for pattern in every if pattern is not None]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)  # re keeps the last 512, so this is a look-up
    except re.error as error:
        raise PluginError(f"metric_updater: {pattern!r} is no pattern: {error}") from error
