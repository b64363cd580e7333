"""When something is done to which modules: marks in steps or epochs, each passed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hatbus.errors import JobError
from hatbus.loop import find_module
from hatbus.option_values import UNITS, one_of

if TYPE_CHECKING:
    from torch import nn

    from hatbus.loop import Context


@dataclass(frozen=True, slots=True)
class Mark:
    """From the step or epoch ``at`` on, something holds for these modules."""

    modules: tuple[str, ...]
    at: int


def read_marks(
    plugin: str, modules: Any, step_or_epoch: Any, update_by: str, option: str = "step_or_epoch"
) -> list[Mark]:
    """One mark per entry.

    Args:
        plugin: its name, for messages.
        modules: lists of module names; a single name stands for a list of one.
        step_or_epoch: when, one number for each list; a None means never.
        update_by: ``"step"`` or ``"epoch"``.
        option: the name of ``step_or_epoch``, for messages.

    Raises:
        JobError: what cannot be used, and what is accepted.
    """
    one_of(f"{plugin}: update_by", update_by, UNITS)
    for name, value in (("modules", modules), (option, step_or_epoch)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise JobError(
                f"{plugin}: {name} is {value!r}; accepted: a list with one entry per mark"
            )
    if len(modules) != len(step_or_epoch):
        lengths = f"{len(modules)} entries, {option} {len(step_or_epoch)}"
        raise JobError(f"{plugin}: modules has {lengths}; give one number for each list of modules")
    pairs = zip(modules, step_or_epoch, strict=True)
    return [_read_mark(plugin, option, names, at) for names, at in pairs if at is not None]


def _read_mark(plugin: str, option: str, names: Any, at: Any) -> Mark:
    listed = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if not all(isinstance(name, str) for name in listed):
        raise JobError(f"{plugin}: modules holds {names!r}; accepted: module names")
    if not isinstance(at, int) or isinstance(at, bool) or at < 0:
        raise JobError(f"{plugin}: {option} holds {at!r}; accepted: whole numbers from 0")
    return Mark(listed, at)


def check_names(plugin: str, marks: Sequence[Mark], model: nn.Module) -> None:
    """Refuses a module that the model does not have.

    Args:
        plugin: its name, for messages.
        marks: what names modules.
        model: the model, or ``ctx.all_modules`` for what stands beside it too.

    Raises:
        JobError: which one, with the closest names.
    """
    for mark in marks:
        for name in mark.modules:
            find_module(model, name, f"{plugin}: modules")


def due(marks: Sequence[Mark], done: int, now: int) -> list[Mark]:
    """The marks that are reached, in order of their times, after the ``done`` first ones."""
    return [mark for mark in in_order(marks)[done:] if now >= mark.at]


def in_order(marks: Sequence[Mark]) -> list[Mark]:
    """The marks by their times; those of one time as they were given."""
    return sorted(marks, key=lambda mark: mark.at)


def as_data(marks: Sequence[Mark]) -> list[list[Any]]:
    """The marks in order as plain data, to compare those of a saved run with."""
    return [[list(mark.modules), mark.at] for mark in in_order(marks)]


def previewed(
    verb: str, marks: Sequence[Mark], update_by: str, ctx: Context
) -> list[tuple[int, str]]:
    """``(global step, label)`` of every mark whose step can be known before the run."""
    per = 1 if update_by == "step" else ctx.steps_per_epoch
    if per is None:
        return []
    labels = (
        (m.at * per, f"{verb} {', '.join(n or 'the model' for n in m.modules)}") for m in marks
    )
    return sorted(labels)
