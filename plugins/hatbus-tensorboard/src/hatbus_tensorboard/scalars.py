"""Which values are scalars, and their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from typing import Any

import torch

from hatbus.errors import JobError


def compiled(pattern: str) -> re.Pattern[str]:
    """``loss_name_reg``, compiled; case does not matter.

    Raises:
        JobError: it is no regular expression.
    """
    if not isinstance(pattern, str):
        raise JobError(
            f"tensorboard: loss_name_reg is {pattern!r:.80}; accepted: a regular expression"
        )
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise JobError(
            f"tensorboard: loss_name_reg is {pattern!r}; accepted: a regular expression, and this "
            f"is none: {error}"
        ) from error


def flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of nested mappings, lists and tuples by their path, joined by "_".

    >>> dict(flat({"det": {"cls_loss": 1.0, "parts": [2, 3]}}))
    {'det_cls_loss': 1.0, 'det_parts_0': 2, 'det_parts_1': 3}
    """
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif hasattr(value, "_fields"):
        items = zip(value._fields, value, strict=True)
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        yield name, value
        return
    for key, one in items:
        yield from flat(one, f"{name}_{key}" if name else str(key))


def is_scalar(value: Any) -> bool:
    """Whether a value is one number; asks no device."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real) or (hasattr(value, "dtype") and getattr(value, "size", 0) == 1)


def losses_of(
    model_outs: Any, losses: Mapping[str, Any], pattern: re.Pattern[str]
) -> dict[str, Any]:
    """The losses of a batch by name.

    Args:
        model_outs: scalars whose flattened name matches are taken.
        losses: the losses that training uses; one whose name does not match is taken as
            ``loss/<name>`` if that does.
        pattern: of the names, from their start.
    """
    found = {
        name: value
        for name, value in flat(model_outs)
        if is_scalar(value) and name and pattern.match(name)
    }
    return found | {tag: losses[name] for tag, name in tags_of(losses, pattern).items()}


def tags_of(losses: Iterable[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """Under which tag a loss is written: tag to name, of those that are."""
    found = {}
    for name in losses:
        for tag in (name, f"loss/{name}"):
            if pattern.match(tag):
                found[tag] = name
                break
    return found


def kept(value: Any) -> Any:
    """A value that stays as it is although what it was read from goes on changing; no waiting."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def is_on_host(value: torch.Tensor) -> bool:
    """Whether a tensor's numbers can be read without waiting for anybody."""
    return type(value) is torch.Tensor and value.is_cpu


def stacked(tensors: Collection[torch.Tensor]) -> torch.Tensor:
    """One-element tensors of one device as a new tensor (n,); copies, and does not wait."""
    flat_ones = [t.detach() if t.requires_grad else t for t in tensors]
    flat_ones = [t.reshape(()) if t.ndim else t for t in flat_ones]
    kind = flat_ones[0].dtype
    if not kind.is_floating_point or any(t.dtype is not kind for t in flat_ones):
        flat_ones = [t.to(torch.float32) for t in flat_ones]
    return torch.stack(flat_ones)
