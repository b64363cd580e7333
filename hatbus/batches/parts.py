"""A run's parts from configs: model, optimizer, data, loss and what else the trainer takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hatbus.batches.hat_processors import PROCESSORS
from hatbus.discovery.configs import Builder, is_config
from hatbus.errors import JobError

if TYPE_CHECKING:
    import torch


def built_parts(builder: Builder | None = None, **parts: Any) -> dict[str, Any]:
    """The parts, those given as ``dict(type=..., ...)`` built.

    Args:
        builder: keeps what stands in several places one object.
        parts: ``model``, ``optimizer``, ``data``, ``loss`` and others by name. An optimizer needs
            no ``params``: they are the model's (see ``built_optimizer``). Data and losses may be
            mappings from tasks.

    Raises:
        HatbusError: a config that cannot be built.
    """
    builder = builder or Builder("trainer", PROCESSORS)
    found = {name: _built(builder, one) for name, one in parts.items() if name != "optimizer"}
    if "optimizer" in parts:
        found["optimizer"] = built_optimizer(parts["optimizer"], found.get("model"), builder)
    return found


def built_optimizer(
    config: Any, model: torch.nn.Module | None, builder: Builder | None = None
) -> Any:
    """An optimizer over a model's parameters, from a config; anything else is given back.

    ``params`` is left out for all of them, or as in HAT a mapping from patterns to options: each
    parameter whose name a pattern is found in makes part of a group with those options.

    Raises:
        HatbusError: the config cannot be built.
    """
    if not is_config(config):
        return config
    options = dict(config)
    if model is None:
        raise JobError("optimizer is a config, and there is no model whose parameters it gets")
    given = options.pop("params", None)
    if given is None or isinstance(given, Mapping):
        given = groups_of(model, given or {})
    options["params"] = given
    return (builder or Builder("optimizer")).build(options)


def groups_of(model: torch.nn.Module, patterns: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Param groups by the first pattern that is found in a parameter's name; the rest is one more.

    Raises:
        JobError: no parameter's name has a pattern, or it is no pattern.
    """
    if not patterns:
        return list(model.parameters())
    groups: dict[str, list[Any]] = {pattern: [] for pattern in patterns}
    rest: list[Any] = []
    for name, parameter in model.named_parameters():
        home = next((p for p in patterns if _is_in(p, name)), None)
        (rest if home is None else groups[home]).append(parameter)
    for pattern, found in groups.items():
        if not found:
            names = ", ".join(repr(name) for name, _ in list(model.named_parameters())[:5])
            raise JobError(f"optimizer: params: no parameter's name has {pattern!r}; as {names}")
    made = [{"params": found, **patterns[pattern]} for pattern, found in groups.items()]
    return [*made, *([{"params": rest}] if rest else [])]


def _is_in(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise JobError(f"optimizer: params: {pattern!r} is no pattern: {error}") from error


def _built(builder: Builder, part: Any) -> Any:
    """One part; only what can hold a config is looked at, never a list of batches."""
    if is_config(part):
        return builder.build(part)
    if isinstance(part, Mapping) and any(map(is_config, part.values())):
        return {key: builder.build(one) for key, one in part.items()}
    if isinstance(part, (list, tuple)) and part and all(map(is_config, part)):
        return [builder.build(one) for one in part]
    return part
