"""A model's weights: the tensors by name, shared ones stored once, and loading them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hatbus.errors import CheckpointError
from hatbus.log import log
from hatbus_checkpoint.tree import Tensors, identity

_SHOWN = 10
"""Names of one kind that a message lists."""


def take(model: torch.nn.Module) -> tuple[Tensors, dict[str, str], dict[str, Any]]:
    """Tensors by name; name to the name that has its tensor, for shared ones; and the rest."""
    tensors: Tensors = {}
    aliases: dict[str, str] = {}
    extra: dict[str, Any] = {}
    first: dict[Any, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            extra[name] = value
            continue
        same = first.setdefault(identity(value), name)
        if same == name:
            tensors[name] = value
        else:
            aliases[name] = same
    return tensors, aliases, extra


def joined(
    tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The state dict that ``take`` took apart."""
    return {**tensors, **{n: tensors[same] for n, same in aliases.items()}, **extra}


def give(model: torch.nn.Module, state: Mapping[str, Any], *, strict: bool) -> None:
    """Loads weights, after a look at all of them.

    Args:
        model: the model.
        state: name to tensor.
        strict: refuse missing and unexpected names; otherwise they are a warning.

    Raises:
        CheckpointError: a table of what does not fit; no weight was touched.
    """
    rows = differences(model, state)
    fatal = [r for r in rows if strict or r[0] == "reshaped"]
    nothing = bool(rows) and not set(model.state_dict()) & set(state)
    if fatal or nothing:
        hint = "" if nothing or not strict else "; strict_match = false loads what fits"
        raise CheckpointError(f"the model is not the one that was saved{hint}\n{table(rows)}")
    if rows:
        log.warning("the model is not the one that was saved; loading what fits\n%s", table(rows))
    model.load_state_dict(dict(state), strict=False)


def differences(model: torch.nn.Module, state: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What does not fit: ``(missing | unexpected | reshaped, name, detail)``."""
    mine = model.state_dict()
    rows = [("missing", n, _shape(v)) for n, v in mine.items() if n not in state]
    rows += [("unexpected", n, _shape(v)) for n, v in state.items() if n not in mine]
    rows += [
        ("reshaped", n, f"{_shape(state[n])} in the checkpoint, {_shape(v)} in the model")
        for n, v in mine.items()
        if n in state and _shape(state[n]) != _shape(v)
    ]
    return rows


def table(rows: list[tuple[str, str, str]]) -> str:
    """The differences as lines of text."""
    lines = []
    for kind in ("missing", "unexpected", "reshaped"):
        mine = [r for r in rows if r[0] == kind]
        lines += [f"  {kind:<11} {name}  {detail}" for _, name, detail in mine[:_SHOWN]]
        if len(mine) > _SHOWN:
            lines.append(f"  {kind:<11} and {len(mine) - _SHOWN} more")
    return "\n".join(lines)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
