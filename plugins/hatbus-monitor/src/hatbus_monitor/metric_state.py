"""The accumulators of any metric as plain state, so that a resumed run goes on exactly.

Three kinds, in this order: a torchmetrics metric (its own ``state_dict`` leaves out what it
accumulates unless asked, so the accumulators are read directly); an object with ``state_dict``
and ``load_state_dict``; any other object, whose attributes are taken as far as they are data.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from inspect import signature
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from hatbus.errors import CheckpointError
from hatbus.log import log

_OF_EVERY_METRIC: Final = frozenset(
    [
        "training",
        "compute_on_cpu",
        "dist_sync_on_step",
        "process_group",
        "dist_sync_fn",
        "sync_on_compute",
        "compute_with_cache",
        "distributed_available_fn",
        "_device",
        "_dtype",
        "_update_signature",
        "_computed",
        "_forward_cache",
        "_update_count",
        "_to_sync",
        "_should_unsync",
        "_enable_grad",
        "_dtype_convert",
        "_defaults",
        "_persistent",
        "_reductions",
        "_is_synced",
        "_cache",
        "_is_full_backward_hook",
        "_TORCH_GREATER_EQUAL_2_1",
    ]
) | frozenset(vars(nn.Module()))
"""Attributes that every torchmetrics metric has, none of which it counts in."""
_BESIDE: Final = "beside the states"
"""The key of what a library's metric counts outside its states."""
_NUMPY: Final = "numpy of dtype"
"""The key of numpy's own values in a state, so that they come back as numpy's."""


def state_of(metric: Any) -> dict[str, Any]:
    """What a metric has accumulated: dicts, lists, numbers, strings and tensors."""
    if _is_torchmetrics(metric):
        return {
            name: {
                "count": part.update_count,
                "states": copied(part.metric_state),
                _BESIDE: copied(dict(_beside(part, part.metric_state))),
            }
            for name, part in _parts(metric)
        }
    if _has_own_state(metric):
        own: dict[str, Any] = copied(metric.state_dict())
        return {**own, _BESIDE: copied(dict(_beside_own(metric)))} if _is_torcheval(metric) else own
    return {name: copied(value) for name, value in _data_attributes(metric)}


def lasting_state(metric: Any) -> dict[str, Any] | None:
    """What a metric keeps though it is reset, such as extremes so far; None where it is nothing.

    A validation's metrics are reset before they count again: a checkpoint need not have the rest.
    """
    if _is_torchmetrics(metric) and not any(hasattr(m, "increment") for m in metric.modules()):
        kept = {
            name: copied(dict(_beside(part, part.metric_state))) for name, part in _parts(metric)
        }
        found = {name: {"count": 0, "states": {}, _BESIDE: one} for name, one in kept.items()}
        return found if any(kept.values()) else None
    is_all_reset = _has_own_state(metric) and (_is_torcheval(metric) or is_ignites(metric))
    return None if is_all_reset else state_of(metric)


def restore(metric: Any, state: Mapping[str, Any]) -> None:
    """Gives a metric back what ``state_of`` found in it.

    Raises:
        CheckpointError: the state belongs to another metric.
    """
    if _is_torchmetrics(metric):
        _restore_torchmetrics(metric, state)
    elif _has_own_state(metric):
        if is_ignites(metric):
            _make_room(metric, state)
        metric.load_state_dict({key: one for key, one in state.items() if key != _BESIDE})
        for name, value in state.get(_BESIDE, {}).items():
            setattr(metric, name, _like(getattr(metric, name, None), value))
    else:
        for name, value in state.items():
            setattr(metric, name, _like(getattr(metric, name, None), value))


def copied(value: Any) -> Any:
    """A value whose containers and tensors are its own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(copied, value)) if type(value) in (list, tuple) else list(value)
    if not _is_numpy(value):
        return value
    held = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), ndmin=1))
    return {_NUMPY: value.dtype.str, "shape": _shape(value), "value": held}


def is_data(value: Any) -> bool:
    """Whether a checkpoint can hold the value."""
    if value is None or _is_numpy(value) or isinstance(value, (bool, int, float, str, Tensor)):
        return True
    if type(value) is dict:
        return all(isinstance(key, (str, int)) and is_data(one) for key, one in value.items())
    return type(value) in (list, tuple) and all(map(is_data, value))


def _is_torchmetrics(metric: Any) -> bool:
    return isinstance(metric, nn.Module) and any(True for _ in _parts(metric))


def _has_own_state(metric: Any) -> bool:
    return callable(getattr(metric, "state_dict", None)) and callable(
        getattr(metric, "load_state_dict", None)
    )


def _parts(metric: nn.Module) -> Iterator[tuple[str, Any]]:
    """The torchmetrics metrics inside a metric, a wrapper or a collection, by path."""
    for _, part in metric.named_modules():
        if hasattr(part, "compute_groups"):
            part.values(copy_state=False)  # members of a compute group see their leader's sums
    for name, part in metric.named_modules():
        if hasattr(part, "update_count") and hasattr(part, "metric_state"):
            yield name, part


def _is_torcheval(metric: Any) -> bool:
    return "_state_name_to_default" in vars(metric)  # ignite's has whatever it is asked for


def is_ignites(metric: Any) -> bool:
    """Whether a metric is one of ignite's."""
    return any(cls.__module__.startswith("ignite.") for cls in type(metric).__mro__)


def _make_room(metric: Any, state: Mapping[str, Any]) -> None:
    """Lets a metric of ignite take a state whose lists are longer than its own, as they always are.

    It fills the lists that are there (``EpochMetric``), and refuses others.
    """
    for name, value in state.items():
        if name.startswith("__"):  # a state for each process
            for one in value:
                _make_room(metric, one)
            continue
        present = vars(metric).get(name)
        pairs = [(present, value)]
        if isinstance(value, (list, tuple)) and isinstance(present, list):
            pairs = list(zip(present, value, strict=False))
            if not any(map(is_ignites, present)):
                setattr(metric, name, list(value))
        for part, one in pairs:
            if is_ignites(part):
                _make_room(part, one)


def _beside_own(metric: Any) -> Iterator[tuple[str, Any]]:
    """What a metric of torcheval leaves out of its own state: the place in its window."""
    return _beside(metric, metric._state_name_to_default)  # noqa: SLF001 - it has no public word


def _beside(part: Any, states: Container[str]) -> Iterator[tuple[str, Any]]:
    """What a metric counts outside its states: a window's place, extremes so far.

    Its options are none of that: a resumed run may have others.
    """
    makers = [vars(cls)["__init__"] for cls in type(part).__mro__ if "__init__" in vars(cls)]
    options = {name for maker in makers[:-1] for name in signature(maker).parameters}  # no object's
    for name, value in vars(part).items():
        is_own = name not in _OF_EVERY_METRIC and name not in states
        if is_own and name.removeprefix("_") not in options and is_data(value):
            yield name, value


def _grow(metric: nn.Module, saved: Iterable[str]) -> None:
    """Gives a new ``MetricTracker`` as many steps as the saved one had."""
    for path, part in metric.named_modules():
        if not callable(getattr(part, "increment", None)):
            continue
        start = f"{path}." if path else ""
        mine = (name.removeprefix(start) for name in saved if name.startswith(start))
        heads = (name.partition(".")[0] for name in mine)
        steps = max((int(head) for head in heads if head.isdigit()), default=0)
        while len(part) <= steps:
            part.increment()


def _restore_torchmetrics(metric: nn.Module, state: Mapping[str, Any]) -> None:
    _grow(metric, state)
    parts = dict(_parts(metric))
    if parts.keys() != state.keys():
        raise CheckpointError(
            f"saved metric parts {sorted(state)} are not those of {type(metric).__name__}, "
            f"{sorted(parts)}; resume with the metrics of the saved run"
        )
    for name, part in parts.items():
        for key, saved in state[name]["states"].items():
            setattr(part, key, _on_device(saved, part.device))
        for key, saved in state[name].get(_BESIDE, {}).items():
            setattr(part, key, _like(getattr(part, key, None), saved))
        part._update_count = state[name]["count"]  # noqa: SLF001 - torchmetrics has no setter
        part._computed = None  # noqa: SLF001 - a value cached for other sums


def _data_attributes(metric: Any) -> Iterator[tuple[str, Any]]:
    for name, value in getattr(metric, "__dict__", {}).items():
        if is_data(value):
            yield name, value
        elif not callable(value):
            kind = type(value).__name__
            who = type(metric).__name__
            log.warning("%s.%s (%s) is not saved; give %s a state_dict", who, name, kind, who)


def _like(present: Any, saved: Any) -> Any:
    """A saved value as it was: numpy's own, tensors on the device of the present one."""
    if isinstance(saved, Mapping) and _NUMPY in saved:
        array = saved["value"].numpy().astype(saved[_NUMPY])
        return array.reshape(saved["shape"]) if saved["shape"] is not None else array[0]
    if isinstance(present, Tensor) and isinstance(saved, Tensor):
        return saved.to(present.device, copy=True)
    if isinstance(saved, Mapping):
        return {key: _like(None, one) for key, one in saved.items()}
    if isinstance(saved, (list, tuple)):
        return type(saved)(_like(None, one) for one in saved)
    return copied(saved)


def _on_device(saved: Any, device: Any) -> Any:
    if isinstance(saved, Tensor):
        return saved.to(device, copy=True)
    return [one.to(device) if isinstance(one, Tensor) else one for one in saved]


def _is_numpy(value: Any) -> bool:
    """Whether a value is numpy's and of numbers, which a tensor can hold."""
    return (
        isinstance(value, (np.ndarray, np.generic))
        and value.dtype.kind in "biufc"
        and (
            value.dtype.itemsize <= 8 or value.dtype == np.complex128  # no tensor is longer
        )
    )


def _shape(value: Any) -> list[int] | None:
    """An array's shape; None of a scalar."""
    return list(value.shape) if isinstance(value, np.ndarray) else None
