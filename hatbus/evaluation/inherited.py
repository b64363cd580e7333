"""What a training does to a model's forward pass, on the bus of a validation inside of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.member import is_core
from hatbus.events.declare import OVERRIDABLE, hookimpl

if TYPE_CHECKING:
    import pluggy

    from hatbus.bus.bus import Bus

FORWARD: Final = "forward"
LOSS: Final = "compute_loss"


def inherit(bus: Bus, training: Bus, *, replacements: bool = True) -> None:
    """Puts what decides about a model's outputs and losses on the bus of a validation.

    These are the plugins' implementations of ``forward``, and those that take the place of
    ``compute_loss``, without the rest of the plugins: what surrounds the loss may be a term that is
    for training only. Where the validation has an implementation of its own in that place, or the
    very plugin, the training's stays out. Each is named and ordered as in the training, for the
    same tasks, and always due.

    Args:
        bus: of the validation, with all its plugins.
        training: the bus of the training.
        replacements: whether implementations that take the place of hatbus's are wanted too.
    """
    tasks = [task for task in bus.scopes if task is not None]
    own = {event for event in (FORWARD, LOSS) if any(map(is_replacement, found(bus, event)))}
    theirs = {id(member.plugin) for member in bus.members.values()}
    methods: dict[str, dict[str, pluggy.HookImpl]] = {}
    for event in (FORWARD, LOSS):
        for one in found(training, event):
            takes_place = is_replacement(one)
            is_wanted = replacements and event not in own if takes_place else event == FORWARD
            if is_wanted and not is_core(one.plugin_name) and id(one.plugin) not in theirs:
                methods.setdefault(one.plugin_name, {})[one.function.__name__] = one
    for name, impls in methods.items():
        declared = training.members[name].declared
        overrides = {key: getattr(declared, key) for key in OVERRIDABLE} | {"every": ""}
        if declared.tasks:
            overrides["tasks"] = [task for task in declared.tasks if task in tasks]
        if not declared.tasks or overrides["tasks"]:
            free = name if name not in bus.members else f"{name}_of_training"
            bus.register(part_with(name, impls), free, overrides=overrides)


def part_with(name: str, impls: dict[str, pluggy.HookImpl]) -> object:
    """A plugin that has these methods of another, and nothing else of it.

    A method may have its mark from the one that it overrides, so the marks stand in a class below.
    """
    marks = {key: hookimpl(**one.opts)(lambda: None) for key, one in impls.items()}
    functions: dict[str, Any] = {key: one.function for key, one in impls.items()}
    part: object = type(name, (type(name, (), marks),), functions)()
    return part


def found(bus: Bus, event: str) -> list[pluggy.HookImpl]:
    """The implementations of an event in the scope of any task, each once."""
    every = [one for task in bus.scopes for one in bus.implementations(event, task)]
    return list({id(one): one for one in every}.values())


def is_replacement(one: pluggy.HookImpl) -> bool:
    """Whether an implementation takes the place of hatbus's own."""
    return not one.wrapper and not is_core(one.plugin_name)
