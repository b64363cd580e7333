"""Clipping the gradients of a whole step, the way torch does it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hatbus.errors import JobError
from hatbus.option_values import is_number
from hatbus.parallel import largest_magnitudes, local_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


def check_limit(plugin: str, option: str, value: float | None) -> float | None:
    """The value, if gradients can be clipped to it.

    Raises:
        JobError: it is not above 0.
    """
    if value is not None and not (is_number(value) and value > 0):
        raise JobError(f"{plugin}: {option} is {value!r}; accepted: a number above 0, or none")
    return value


def check_norm_type(plugin: str, option: str, value: float) -> float:
    """The value, if it is the order of a norm.

    Raises:
        JobError: it is not.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not number > 0:
        raise JobError(
            f"{plugin}: {option} is {value!r}; accepted: 1, 2, any number above 0, 'inf'"
        )
    return number


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every parameter of the optimizer; torch passes over those without a gradient."""
    groups = optimizer.param_groups
    if len(groups) == 1:
        only: list[nn.Parameter] = groups[0]["params"]
        return only
    return [parameter for group in groups for parameter in group["params"]]


def clip_norm(
    optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float = 2.0
) -> torch.Tensor:
    """Scales all gradients by ``min(1, max_norm / (total norm + 1e-6))``.

    Returns:
        The total norm before clipping, a 0-d tensor left on its device (of shards, a shard).

    Source: Pascanu et al., On the difficulty of training recurrent neural networks, 2013;
    ``torch.nn.utils.clip_grad_norm_``.
    """
    parameters = trained_parameters(optimizer)
    if math.isinf(norm_type):
        return clip_largest(parameters, max_norm)
    try:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
    except NotImplementedError:  # of a sparse gradient; to ask each one first costs every step
        return torch.nn.utils.clip_grad_norm_(by_values(parameters), max_norm, norm_type)


def clip_largest(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scales all gradients by ``min(1, max_norm / (largest magnitude + 1e-6))``.

    torch ends with an error where a gradient, or a process's part of it, has no elements.

    Returns:
        The largest magnitude before clipping, a 0-d tensor on the first gradient's device.
    """
    having = [p for p in by_values(parameters) if p.grad is not None]
    each = largest_magnitudes([p.grad for p in having if p.grad is not None])
    total = torch.stack([one.to(each[0].device) for one in each]).max() if each else torch.zeros(())
    parts = []
    for parameter in having:
        if parameter.grad is not None and (part := local_tensor(parameter.grad)).numel():
            parts.append(torch.empty_like(part))
            parts[-1].grad = part
    torch.nn.utils.clip_grads_with_norm_(parts, max_norm, total)
    return total


def clip_values(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """Moves every gradient's entries to the range from ``-limit`` to ``limit``."""
    parameters = trained_parameters(optimizer)
    try:
        torch.nn.utils.clip_grad_value_(parameters, limit)
    except NotImplementedError:
        torch.nn.utils.clip_grad_value_(by_values(parameters), limit)


def by_values(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The parameters; in place of one with a sparse gradient, one whose gradient is its values.

    torch does not clip sparse gradients. The entries that they do not store are 0 and stay so.
    """
    found = []
    for parameter in parameters:
        if parameter.grad is None or not parameter.grad.is_sparse:
            found.append(parameter)
            continue
        parameter.grad = parameter.grad.coalesce()
        values = parameter.grad.values()  # the gradient's own memory
        if values.numel():
            found.append(torch.empty_like(values))
            found[-1].grad = values
    return found
