"""The accumulators of any metric as plain state, so that a resumed run goes on exactly.

Three kinds, in this order: a torchmetrics metric (its own ``state_dict`` leaves out what it
accumulates unless asked, so the accumulators are read directly); an object with ``state_dict``
and ``load_state_dict``; any other object, whose attributes are taken as far as they are data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hatbus.errors import CheckpointError
from hatbus.log import log


def state_of(metric: Any) -> dict[str, Any]:
    """What a metric has accumulated: dicts, lists, numbers, strings and tensors."""
    if _is_torchmetrics(metric):
        return {
            name: {"count": part.update_count, "states": copied(part.metric_state)}
            for name, part in _parts(metric)
        }
    if _has_own_state(metric):
        return copied(metric.state_dict())  # type: ignore[no-any-return]  # a mapping stays one
    return {name: copied(value) for name, value in _data_attributes(metric)}


def restore(metric: Any, state: Mapping[str, Any]) -> None:
    """Gives a metric back what ``state_of`` found in it.

    Raises:
        CheckpointError: the state belongs to another metric.
    """
    if _is_torchmetrics(metric):
        _restore_torchmetrics(metric, state)
    elif _has_own_state(metric):
        metric.load_state_dict(dict(state))
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
    return torch.from_numpy(value.copy()) if _is_array(value) else value


def is_data(value: Any) -> bool:
    """Whether a checkpoint can hold the value."""
    if value is None or _is_array(value) or isinstance(value, (bool, int, float, str, Tensor)):
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


def _restore_torchmetrics(metric: nn.Module, state: Mapping[str, Any]) -> None:
    parts = dict(_parts(metric))
    if parts.keys() != state.keys():
        raise CheckpointError(
            f"saved metric parts {sorted(state)} are not those of {type(metric).__name__}, "
            f"{sorted(parts)}; resume with the metrics of the saved run"
        )
    for name, part in parts.items():
        for key, saved in state[name]["states"].items():
            setattr(part, key, _on_device(saved, part.device))
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
    """A saved value in the form of the present one: device of a tensor, numpy array."""
    if _is_array(present) and isinstance(saved, Tensor):
        return saved.numpy().copy()
    if isinstance(present, Tensor) and isinstance(saved, Tensor):
        return saved.to(present.device, copy=True)
    return copied(saved)


def _on_device(saved: Any, device: Any) -> Any:
    if isinstance(saved, Tensor):
        return saved.to(device, copy=True)
    return [one.to(device) if isinstance(one, Tensor) else one for one in saved]


def _is_array(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "dtype") and hasattr(value, "copy")
