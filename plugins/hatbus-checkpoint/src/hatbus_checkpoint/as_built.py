"""The optimizer as the run was built with it, before a schedule or a checkpoint changes it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from hatbus.loop import Context

_KEPT: Final = "checkpoint.as_built"
_TENSOR: Final = re.compile(r"tensor\(([^,()]+)")
_CLOSE: Final = 1e-4
"""Older checkpoints show a tensor with four digits."""


class AsBuilt:
    """An optimizer's class and options at the start of a run.

    What is compared between runs is this and not the optimizer at a save: torch adds options when
    it loads a state, schedules fill tensors in place, a plugin may put another optimizer there.

    Args:
        optimizer: at the start; None in a run that does not train.

    Attributes:
        kind: name of its class.
        options: names of the options it was built with.
        groups: per param group, by its name or number, its options and their ``initial_`` values.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        self.kind = type(optimizer).__name__
        self.options: list[str] = list(getattr(optimizer, "defaults", {}))
        groups = [] if optimizer is None else optimizer.param_groups
        named = [str(group.get("name", number)) for number, group in enumerate(groups)]
        if len(set(named)) < len(named):
            named = [str(number) for number in range(len(named))]
        self.groups: dict[str, dict[str, Any]] = {
            label: {k: _as_it_is(v) for k, v in group.items() if k != "params"}
            for label, group in zip(named, groups, strict=True)
        }

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to go on exactly, as flat JSON data."""
        found: dict[str, Any] = {"optimizer": self.kind}
        for name in self.options:
            values = {label: plain(of_group(g, name)) for label, g in self.groups.items()}
            first = next(iter(values.values()), None)
            is_one = all(value == first for value in values.values())
            found[f"optimizer.{name}"] = first if is_one else values
        return found

    def override(self, optimizer: torch.optim.Optimizer, name: str) -> None:
        """Gives the groups an option as it was built, in the place of a checkpoint's."""
        for group, mine in zip(optimizer.param_groups, self.groups.values(), strict=False):
            if name not in mine:
                continue
            start = of_group(mine, name)
            group[name] = _as_it_is(start)
            if f"initial_{name}" in group:
                group[f"initial_{name}"] = _as_it_is(start)
            if name == "betas" and "initial_beta1" in group:
                group["initial_beta1"] = start[0]


def as_built(ctx: Context) -> AsBuilt:
    """The run's optimizer at the first call, which is before anything has changed it."""
    if _KEPT not in ctx.storage:
        ctx.storage[_KEPT] = AsBuilt(ctx.optimizer)
    found: AsBuilt = ctx.storage[_KEPT]
    return found


def of_group(group: dict[str, Any], name: str) -> Any:
    """An option of a param group before a schedule has changed it."""
    return group.get(f"initial_{name}", group.get(name))


def plain(value: Any) -> Any:
    """An optimizer's option, or an argument, as JSON data."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return f"tensor({value.item()!r}, dtype={value.dtype})"  # its repr goes by print options
    simple = value is None or isinstance(value, (bool, int, float, str))
    return value if simple else repr(value)


def is_same(was: Any, now: Any) -> bool:
    """Whether two values of a setting are the same, however a tensor in them is shown."""
    if was == now:
        return True
    if isinstance(was, dict) and isinstance(now, dict):
        return was.keys() == now.keys() and all(is_same(was[k], now[k]) for k in was)
    if isinstance(was, list) and isinstance(now, list):
        return len(was) == len(now) and all(map(is_same, was, now))
    one, other = _shown_number(was), _shown_number(now)
    if one is None or other is None:
        return False
    return abs(one - other) <= _CLOSE * max(abs(one), abs(other))


def _shown_number(value: Any) -> float | None:
    """The number in a text that shows a tensor of one element."""
    found = _TENSOR.match(value) if isinstance(value, str) else None
    try:
        return None if found is None else float(found[1])
    except ValueError:
        return None


def _as_it_is(value: Any) -> Any:
    """A tensor is copied, as it may be filled in place."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
