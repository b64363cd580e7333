"""How a plugin class says where it stands: ``hookimpl`` marks a method, ``plugin`` a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, TypeVar

import pluggy

from hatbus.errors import PluginError, did_you_mean

PROJECT: Final = "hatbus"
ENTRY_POINT_GROUP: Final = "hatbus.plugins"
STAGES: Final = (
    "setup",
    "schedule",
    "train",
    "average",
    "monitor",
    "validate",
    "checkpoint",
    "report",
)
"""The order of plugins inside every event, first to last."""
TRAINING: Final = ("schedule", "train", "average", "validate", "checkpoint")
"""The stages whose plugins a job cannot put on the first process alone."""
NOT_ON_ZERO: Final = (
    "it changes what trains, or exchanges something with the other processes, which would drift "
    "away or wait for ever; leave ranks out"
)
RANKS: Final = ("all", "zero")
"""Where a plugin runs: on every process of a run, or on the first only."""
DECLARATION: Final = "__hatbus__"

hookimpl: Final = pluggy.HookimplMarker(PROJECT)
"""Marks a method as the implementation of the event of the same name.

With ``wrapper=True`` it goes around a span: a generator that yields once and returns the result.
``specname="on_step_end"`` gives the event where the method is called otherwise; ``tryfirst=True``
or ``trylast=True`` put it first or last among the plugins in that event.
"""
hookspec: Final = pluggy.HookspecMarker(PROJECT)

_Class = TypeVar("_Class", bound=type)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a plugin says about itself; a job may override the first six fields.

    Attributes:
        stage: one of ``STAGES``.
        before: names of plugins of the same stage that this one runs before, where present.
        after: names of plugins of the same stage that this one runs after, where present.
        tasks: the only tasks whose batch events it sees; empty: all.
        every: an interval: ``"100 steps"``, ``"1 epoch"``, ``"30 min"``; empty: always.
        ranks: ``"all"``, or ``"zero"`` for a writer that runs on the first process only.
        writes: what it changes (``"optimizer.lr"``, ``"grad.clip"``, ``"weights"``); two plugins
            of one run that write the same thing are refused at start.
        shares: spans that several plugins of the kind may provide in one run. The first in order is
            called, and sees to the others; two providers of any other span are refused.
        everywhere: it has to run on every process: it changes what trains, or exchanges something
            with the other processes. ``ranks="zero"`` is then refused, as it is for what writes
            anything and for the stages in ``TRAINING``.
    """

    stage: str = "monitor"
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    every: str = ""
    ranks: str = "all"
    writes: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    everywhere: bool = False

    def __post_init__(self) -> None:
        """Refuses a stage or rank that does not exist."""
        if self.stage not in STAGES:
            raise PluginError(f"unknown stage {self.stage!r}{did_you_mean(self.stage, STAGES)}")
        if self.ranks not in RANKS:
            raise PluginError(f"unknown ranks {self.ranks!r}; accepted: 'all', 'zero'")
        if self.ranks == "zero" and self.everywhere:
            raise PluginError(f"ranks='zero', but it has to run on every rank: {NOT_ON_ZERO}")


OVERRIDABLE: Final = tuple(
    f.name for f in fields(Declaration) if f.name not in ("writes", "shares", "everywhere")
)
"""The keys of a plugin's table in a job that belong to the bus rather than to the plugin."""


def plugin(
    *,
    stage: str | None = None,
    before: str | Sequence[str] | None = None,
    after: str | Sequence[str] | None = None,
    tasks: str | Sequence[str] | None = None,
    every: str | None = None,
    ranks: str | None = None,
    writes: str | Sequence[str] | None = None,
    shares: str | Sequence[str] | None = None,
    everywhere: bool | None = None,
) -> Callable[[_Class], _Class]:
    """Class decorator: declares a plugin's place and what it writes (see ``Declaration``).

    What is not given is as the parent class declares it.

    >>> @plugin(stage="schedule", writes="optimizer.lr")
    ... class Halve: ...
    >>> @plugin(every="2 epochs")
    ... class HalveSeldom(Halve): ...
    >>> declaration_of(HalveSeldom()).stage
    'schedule'
    """
    lists = {"before": before, "after": after, "tasks": tasks, "writes": writes, "shares": shares}
    given: dict[str, Any] = {n: names(v) for n, v in lists.items() if v is not None}
    words = {"stage": stage, "every": every, "ranks": ranks, "everywhere": everywhere}
    given |= {n: v for n, v in words.items() if v is not None}
    Declaration(**given)  # a mistake is told at the decorator

    def declare(cls: _Class) -> _Class:
        inherited: Declaration = getattr(cls, DECLARATION, None) or Declaration()
        setattr(cls, DECLARATION, replace(inherited, **given))
        return cls

    return declare


def names(value: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def is_declared(instance: object) -> bool:
    """Whether ``@plugin`` was put on the class of an instance, or on a parent of it."""
    return isinstance(getattr(instance, DECLARATION, None), Declaration)


def redeclare(instance: object, **changes: Any) -> None:
    """Gives one instance another declaration than its class has, before it is registered.

    For a plugin whose options decide what it writes: ``redeclare(self, writes="grad.clip")``.

    Args:
        instance: the plugin.
        changes: as ``hatbus.plugin`` takes them; what is not named stays as it is.
    """
    lists = {"before", "after", "tasks", "writes", "shares"}
    given: dict[str, Any] = {n: names(v) if n in lists else v for n, v in changes.items()}
    setattr(instance, DECLARATION, replace(declaration_of(instance), **given))


def declaration_of(instance: object, overrides: dict[str, Any] | None = None) -> Declaration:
    """What the instance (or its class) declares, with the job's overrides on top.

    Args:
        instance: a plugin; of one that declares nothing this is ``Declaration()``.
        overrides: keys of ``OVERRIDABLE`` to their values.

    Raises:
        PluginError: an unknown key or value.
    """
    declared: Declaration = getattr(instance, DECLARATION, None) or Declaration()
    if not overrides:
        return declared
    unknown = set(overrides) - set(OVERRIDABLE)
    if unknown:
        word = sorted(unknown)[0]
        raise PluginError(f"unknown plugin filter {word!r}{did_you_mean(word, OVERRIDABLE)}")
    lists = {"before", "after", "tasks"}
    changes: dict[str, Any] = {k: names(v) if k in lists else v for k, v in overrides.items()}
    if changes.get("ranks") == "zero" != declared.ranks:
        what = f"writes {', '.join(declared.writes)}" if declared.writes else ""
        what = what or f"stands in stage {declared.stage!r}" * (declared.stage in TRAINING)
        if what:
            raise PluginError(f"ranks='zero', but it {what}: {NOT_ON_ZERO}")
    return replace(declared, **changes)
