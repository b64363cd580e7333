"""Computed metrics as named 0-d values, ready to publish."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def named_values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Flattens what ``compute`` gave: mappings by key, tensors and sequences by index.

    Args:
        name: the metric's name.
        value: number, tensor of any shape, mapping or sequence of these.

    Yields:
        Name and number or 0-d tensor. Tensors are copies: a sum that goes on being added to must
        not change a value that was published.
    """
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from named_values(f"{name}_{key}" if name else str(key), one)
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from named_values(f"{name}_{index}", one)
    elif isinstance(value, Tensor):
        copy = value.detach().clone()
        if copy.numel() == 1:
            yield name, copy.reshape(())
        else:
            for index, one in enumerate(copy.flatten().unbind()):
                yield f"{name}_{index}", one
    else:
        yield name, value


def results(name: str, metric: Any) -> Iterator[tuple[str, Any]]:
    """What a metric has found, by name.

    A metric of HAT's says it by ``get()``: a name and a value, or a list of each.

    Args:
        name: the metric's name, for what ``compute`` gave.
        metric: with ``get()``, else with ``compute()``.
    """
    if not has_get(metric):
        return named_values(name, metric.compute())
    names, values = metric.get()
    if isinstance(names, str):
        return named_values(names, values)
    return named_values("", dict(zip(names, values, strict=True)))


def has_get(metric: Any) -> bool:
    """Whether a metric has HAT's ``get()``, which wants no argument; a mapping's is another."""
    get = getattr(metric, "get", None)
    if not callable(get):
        return False
    parameters = inspect.signature(get).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_KEYWORD,) for p in parameters)


class Shown:
    """Values as text; the device is waited for only when somebody really reads the text."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __str__(self) -> str:
        """``accuracy 0.9712, loss 0.1034``."""
        return ", ".join(f"{name} {shown(value)}" for name, value in self._values.items())


def shown(value: Any) -> str:
    """A number with four significant digits; anything else as it is."""
    if isinstance(value, Tensor):
        value = value.item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
