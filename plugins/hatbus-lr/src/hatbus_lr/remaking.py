"""What a scheduler of torch was made with, and making it anew in the middle of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.optim import lr_scheduler

from hatbus.errors import JobError
from hatbus_lr.field import Group

_HISTORY: Final = ("last_epoch", "_step_count", "_last_lr", "best", "cooldown_counter")
_COUNTED: Final = (*_HISTORY, "num_bad_epochs", "_is_initial", "_get_lr_called_within_step")
"""What a scheduler that follows a metric has learned; the rest is what it was made with."""


def made_with(make: Callable[..., Any], arguments: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """A scheduler's class or function, its arguments as plain data, and its unit."""
    name = getattr(make, "__qualname__", type(make).__qualname__)
    return {"scheduler": name, "arguments": described(arguments), "update_by": unit}


def described(value: Any) -> Any:
    """A value as plain data; of what is none, such as a function, its type."""
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    simple = value is None or isinstance(value, (bool, int, float, str))
    return value if simple else type(value).__name__


def starts_of(groups: Sequence[Group]) -> list[float]:
    """The groups' lr before the first step."""
    return [float(g["initial_lr"] if "initial_lr" in g else g["lr"]) for g in groups]


def changes(
    state: Mapping[str, Any], made: Mapping[str, Any], starts: Sequence[float], fresh: Any
) -> list[str]:
    """What is otherwise than in the saved run, in words.

    Args:
        state: what was saved; older ones hold no more than torch's own state.
        made: what this run's scheduler is made with.
        starts: of this run's groups.
        fresh: this run's scheduler.
    """
    saved: Mapping[str, Any] = state["scheduler"]
    was = state.get("made") or _guessed(saved, made, fresh)
    found = [
        f"{key} {was[key]!r:.99} -> {made[key]!r:.99}" for key in made if was[key] != made[key]
    ]
    before = state.get("starts", saved.get("base_lrs", starts))
    pairs = list(zip(map(float, before), starts, strict=False))  # a plugin may have added a group
    if any(one != other for one, other in pairs):
        found.append(f"lr {[one for one, _ in pairs]} -> {[other for _, other in pairs]}")
    return found


def _guessed(saved: Mapping[str, Any], made: Mapping[str, Any], fresh: Any) -> dict[str, Any]:
    """What an older checkpoint's scheduler was made with: torch keeps most under the same name."""
    now, arguments = vars(fresh), dict(made["arguments"])
    for key in arguments:
        if key in saved and key in now and described(saved[key]) != described(now[key]):
            arguments[key] = described(saved[key])
    return {**made, "arguments": arguments}


def put_back(groups: Sequence[Group], starts: Sequence[float]) -> None:
    """Sets every group to its lr before the first step, as if none had been made."""
    for number, group in enumerate(groups):
        own = float(group.pop("initial_lr", group["lr"]))
        write(group, starts[number] if number < len(starts) else own)


def write(group: Group, lr: float) -> None:
    """Sets a group's lr; a tensor is filled, not replaced."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def with_history(saved: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """A metric's scheduler as it is made now, with what the saved one had learned."""
    return {**fresh, **{key: saved[key] for key in _COUNTED if key in saved and key in fresh}}


def scale(groups: Sequence[Group], state: Mapping[str, Any], starts: Sequence[float]) -> None:
    """Sets every group to its start times what the saved schedule had made of the saved start."""
    last: Sequence[Any] = state["scheduler"].get("_last_lr", [])
    before: Sequence[Any] = state.get("from") or starts
    for group, now, was, start in zip(groups, last, before, starts, strict=False):
        write(group, start if float(was) == 0 else start * (float(now) / float(was)))


def take_in(scheduler: Any, groups: Sequence[Group]) -> None:
    """Lets groups that a plugin has added follow the schedule, from their own lr.

    Raises:
        JobError: this scheduler has more per group than torch lets be added.
    """
    for one in (scheduler, *getattr(scheduler, "_schedulers", ())):
        base = getattr(one, "base_lrs", None)
        if not isinstance(base, list) or len(base) >= len(groups):
            continue
        if isinstance(one, (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)):
            raise JobError(
                f"torch_lr: torch's {type(one).__name__} cannot take in a param group that is "
                "added in the middle of a run; accepted: one_cycle_lr or cyclic_lr in its place"
            )
        for group in groups[len(base) :]:
            base.append(group.setdefault("initial_lr", float(group["lr"])))
    for one in (scheduler, *getattr(scheduler, "_schedulers", ())):
        functions = getattr(one, "lr_lambdas", None)
        if functions:
            functions.extend(functions[-1:] * (len(groups) - len(functions)))
