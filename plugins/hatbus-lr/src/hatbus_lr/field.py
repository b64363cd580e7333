"""The field of a param group that a schedule sets: ``lr``, or another number of the optimizer."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch

from hatbus.errors import JobError, did_you_mean

Group = dict[str, Any]
FIRST_BETA: Final = "beta1"
"""Name of ``betas[0]``."""


class Field:
    """Reads and writes one number of a param group.

    Args:
        name: ``"lr"``, ``"weight_decay"``, ``"momentum"``, ``"beta1"`` (the first of ``betas``),
            or any other number that the optimizer keeps per group.

    Attributes:
        initial: the group's key for the value before the first step (``"initial_lr"``, as in
            torch); the optimizer's state carries it through a checkpoint.
    """

    __slots__ = ("initial", "name")

    def __init__(self, name: str) -> None:
        self.name, self.initial = name, f"initial_{name}"

    def read(self, group: Group) -> float:
        """The present value.

        Raises:
            JobError: the optimizer has no such number.
        """
        held = group["betas"][0] if self._is_first_beta(group) else group.get(self.name)
        if isinstance(held, torch.Tensor) and held.numel() == 1:
            return float(held)
        if isinstance(held, bool) or not isinstance(held, (int, float)):
            known = sorted(numbers(group))
            nearest = did_you_mean(self.name, known)
            raise JobError(
                f"field {self.name!r} is no number of this optimizer; accepted: "
                f"{', '.join(map(repr, known))}{nearest if 'did you mean' in nearest else ''}"
            )
        return float(held)

    def write(self, group: Group, value: float) -> None:
        """Sets a value; a tensor (optimizers under torch.compile) is filled, not replaced."""
        held = group.get(self.name)
        if isinstance(held, torch.Tensor):
            held.fill_(value)
        elif self._is_first_beta(group):
            group["betas"] = (value, *group["betas"][1:])
        else:
            group[self.name] = value

    def remember(self, group: Group) -> float:
        """The value before the first step, noted in the group once."""
        if self.initial not in group:
            group[self.initial] = self.read(group)
        initial = group[self.initial] = float(group[self.initial])
        return initial

    def _is_first_beta(self, group: Group) -> bool:
        return self.name == FIRST_BETA and "betas" in group


def numbers(group: Group) -> set[str]:
    """The fields of a param group that a schedule can set."""
    found = {
        name
        for name, value in group.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    found = {name for name in found if not name.startswith("initial_")}
    return found | {FIRST_BETA} if "betas" in group else found


def labels(field: str, groups: list[Group]) -> tuple[str, ...]:
    """Log names of the groups: ``lr/<name>``, or ``lr/<number>`` where a group has no name."""
    names = [str(group.get("name", index)) for index, group in enumerate(groups)]
    times = Counter(names)
    return tuple(
        f"{field}/{name}" if times[name] == 1 else f"{field}/{name}_{index}"
        for index, name in enumerate(names)
    )
