"""Finding the losses in what a model or a loss function returned.

Source: ``hat``'s loss collectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from hatbus.errors import JobError

LOSS_NAME: Final = "^.*loss.*"
"""What a loss is called where nothing else is said; the case of letters does not matter."""
_LOSS_NAME: Final = re.compile(LOSS_NAME, re.IGNORECASE)
_NESTED: Final = (Mapping, list, tuple)


def collect_losses(model_outs: Any) -> Any:
    """The losses that a model returned.

    A tensor stands for itself, every 0-d tensor of a list is a loss. Of a mapping it is the entries
    named like a loss; those of mappings and lists inside it too, by names joined with "_", unless
    there is an entry ``"loss"``, which is then the whole. In an output of Transformers it is always
    the whole: what else is named so there are parts of it (``aux_loss``).
    """
    if not isinstance(model_outs, Mapping):
        return _of_list(model_outs) if isinstance(model_outs, (list, tuple)) else model_outs
    found = {
        name: value
        for name, value in model_outs.items()
        if _LOSS_NAME.match(str(name)) and isinstance(value, torch.Tensor)
    }
    if "loss" in found and any(map(_is_of_transformers, type(model_outs).__mro__)):
        return {"loss": found["loss"]}
    if "loss" in found or not any(isinstance(value, _NESTED) for value in model_outs.values()):
        return found
    return matching(model_outs, _LOSS_NAME)


def _is_of_transformers(cls: type) -> bool:
    return cls.__name__ == "ModelOutput" and cls.__module__.partition(".")[0] == "transformers"


def collect_loss_by_index(indexes: int | Sequence[int]) -> Callable[[Any], list[Any]]:
    """A ``loss_collector`` that takes the losses at these places of the model's outputs."""
    wanted = [indexes] if isinstance(indexes, int) else list(indexes)

    def collect(model_outs: Any) -> list[Any]:
        """The losses."""
        return [model_outs[index] for index in wanted]

    return collect


def collect_loss_by_regex(pattern: str = LOSS_NAME) -> Callable[[Any], dict[str, Any]]:
    """A ``loss_collector`` that takes every tensor whose flattened name matches, ignoring case.

    Raises:
        JobError: it is no pattern.
    """
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise JobError(f"loss_collector: {pattern!r} is no pattern: {error}") from error

    def collect(model_outs: Any) -> dict[str, Any]:
        """The losses by name."""
        return matching(model_outs, compiled)

    return collect


def matching(value: Any, pattern: re.Pattern[str]) -> dict[str, Any]:
    """The tensors in nested mappings and lists whose name, joined by "_", matches."""
    return {
        name: leaf
        for name, leaf in leaves(value)
        if isinstance(leaf, torch.Tensor) and pattern.match(name)
    }


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """``(name, leaf)`` of nested mappings and lists; names joined by "_"."""
    if isinstance(value, _NESTED):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, one in parts:
            yield from leaves(one, f"{name}_{key}" if name else str(key))
    else:
        yield name, value


def named_losses(found: Any, task: str | None) -> dict[str, torch.Tensor]:
    """Losses as a mapping from name to 0-d tensor; those of a list are ``loss_0``, ``loss_1``.

    Raises:
        JobError: something in it is no 0-d tensor, or there is none.
    """
    losses = _by_name(found)
    for name, value in losses.items():
        if not isinstance(value, torch.Tensor):
            what = f"a {type(value).__name__}"
        elif value.dim() != 0:
            what = f"a tensor of shape {tuple(value.shape)}"
        else:
            continue
        where = f"task {task!r}: " if task else ""
        raise JobError(
            f"{where}loss {name!r} is {what}; accepted: a 0-d tensor, a list of them, or "
            "{name: 0-d tensor}"
        )
    if not losses:
        raise JobError("there is no loss; return a 0-d tensor, or give the trainer a loss=")
    return losses


def losses_if_any(collector: Callable[[Any], Any], model_outs: Any) -> dict[str, torch.Tensor]:
    """The losses in the outputs of an evaluation, where a model may well return none.

    A collector that finds nothing where it looks says so by the error of a missing key or index.
    """
    try:
        found = collector(model_outs)
    except (LookupError, TypeError, AttributeError):
        return {}
    return {
        name: value
        for name, value in _by_name(found).items()
        if isinstance(value, torch.Tensor) and value.dim() == 0
    }


def _by_name(found: Any) -> dict[str, Any]:
    if isinstance(found, (list, tuple)):
        found = _of_list(found)
    if not isinstance(found, Mapping):
        return {} if found is None else {"loss": found}
    if any(isinstance(value, _NESTED) for value in found.values()):
        return dict(leaves(found))
    return dict(found)


def _of_list(found: Sequence[Any]) -> dict[str, Any]:
    """Tensors of a list by number; mappings in it by the names that are losses."""
    named: dict[str, Any] = {}
    for index, one in enumerate(found):
        if isinstance(one, _NESTED):
            named |= {f"{index}_{n}": v for n, v in matching(one, _LOSS_NAME).items()}
        else:
            named["loss" if len(found) == 1 else f"loss_{index}"] = one
    return named
