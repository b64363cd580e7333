"""The rules of ``GradScale``: which gradients a task's backward scales, and by what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError, did_you_mean
from hatbus.loop import find_module

if TYPE_CHECKING:
    from torch import nn

ACCEPTED: Final = "accepted: (module, scale) or (module, scale, task)"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: the gradients of a module from the backward of one task, or of every task."""

    module: str
    scale: float
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The parameters whose gradients one task's backward multiplies by one number."""

    scale: float
    parameters: tuple[nn.Parameter, ...]


def read_rules(entries: Sequence[Any]) -> list[Rule]:
    """Rules out of ``(module, scale[, task])`` entries; an empty or missing task means every task.

    Raises:
        JobError: an entry is none.
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise JobError(f"grad_scale: module_and_scale is {entries!r}; accepted: a list of rules")
    return [_read_rule(index, entry) for index, entry in enumerate(entries)]


def _read_rule(index: int, entry: Any) -> Rule:
    where = f"grad_scale: module_and_scale[{index}] is {entry!r}"
    if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) not in (2, 3):
        raise JobError(f"{where}; {ACCEPTED}")
    module, scale, task = (*entry, None)[:3]
    is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not isinstance(module, str) or not is_number or not isinstance(task, str | None):
        raise JobError(f"{where}; {ACCEPTED}, such as ('backbone', 0.1, 'det')")
    if not -float("inf") < scale < float("inf"):
        raise JobError(f"{where}; the scale has to be finite")
    return Rule(module, float(scale), task or None)


def check_tasks(rules: Iterable[Rule], tasks: Sequence[str]) -> None:
    """Refuses a rule for a task that the run does not have.

    Raises:
        JobError: which task, and which there are.
    """
    for rule in rules:
        if rule.task is not None and rule.task not in tasks:
            hint = did_you_mean(rule.task, tasks) or "; the run has no tasks"
            raise JobError(
                f"grad_scale: rule for module {rule.module!r}: unknown task {rule.task!r}{hint}"
            )


def groups_of(model: nn.Module, rules: Iterable[Rule], task: str | None) -> tuple[Group, ...]:
    """What one task's backward has to scale; several rules on one parameter multiply.

    Args:
        model: the raw model.
        rules: all rules of the run.
        task: the task; None in a run without tasks.

    Returns:
        One group per number; parameters whose number is 1 are in none.

    Raises:
        JobError: a rule names a module that the model does not have.
    """
    scales: dict[nn.Parameter, float] = {}
    for rule in rules:
        module = find_module(model, rule.module, "grad_scale: module_and_scale")
        if rule.task in (None, task):
            for parameter in module.parameters():
                scales[parameter] = scales.get(parameter, 1.0) * rule.scale
    by_scale: dict[float, list[nn.Parameter]] = {}
    for parameter, scale in scales.items():
        if scale != 1.0:
            by_scale.setdefault(scale, []).append(parameter)
    return tuple(Group(scale, tuple(found)) for scale, found in by_scale.items())
