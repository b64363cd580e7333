"""What will run when, and why there: the plan of a run, as data, before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.blame import source_of
from hatbus.bus.order import in_turn, turn_of
from hatbus.events.training import DECISION, EVENTS, MOMENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pluggy import HookImpl

    from hatbus.bus.bus import Bus
    from hatbus.bus.member import Member

CORE: Final = "hatbus"


@dataclass(frozen=True, slots=True)
class Entry:
    """One implementation in its place.

    Attributes:
        plugin: instance name.
        does: ``"wraps"``, ``"replaces"``, ``"default"``, ``"hears"`` or ``"decides"``.
        why: the reasons for its place among the plugins, most telling first.
        tasks, every, ranks: its filters; empty or ``"all"`` where it has none.
        writes: what it claims to write.
        source: distribution and version.
        place: its place among the plugins; 0 for hatbus's own.
        turn: ``"tryfirst"`` or ``"trylast"`` of a plugin's method, which decides in this event.
    """

    plugin: str
    does: str
    why: tuple[str, ...]
    tasks: tuple[str, ...]
    every: str
    ranks: str
    writes: tuple[str, ...]
    source: str
    place: int
    turn: str = ""

    @property
    def why_here(self) -> tuple[str, ...]:
        """The reasons for its place in this event."""
        said = {
            "tryfirst": "tryfirst: before all plugins",
            "trylast": "trylast: behind all plugins",
        }
        return (said[self.turn], *self.why) if self.turn else self.why

    @property
    def filters(self) -> str:
        """The filters in words."""
        words = [f"tasks {', '.join(self.tasks)}"] if self.tasks else []
        words += [f"every {self.every}"] if self.every else []
        words += ["rank 0"] if self.ranks == "zero" else []
        return "; ".join(words)


@dataclass(frozen=True, slots=True)
class Plan:
    """Every event with its implementations in order, and the plugins that are off."""

    events: dict[str, tuple[Entry, ...]]
    off: tuple[str, ...]

    @property
    def plugins(self) -> tuple[Entry, ...]:
        """Every plugin once, in the order that holds in every event."""
        found = {e.plugin: e for entries in self.events.values() for e in entries}
        return tuple(sorted((e for e in found.values() if e.source != CORE), key=lambda e: e.place))

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "events": {e: [asdict(entry) for entry in found] for e, found in self.events.items()},
            "off": list(self.off),
        }

    def lines(self) -> list[str]:
        """The plan line by line, for a comparison of two."""
        return [
            f"{event}: {entry.plugin} {entry.does}"
            + (f" ({entry.filters})" if entry.filters else "")
            for event, entries in self.events.items()
            for entry in entries
        ]


def plan_of(bus: Bus, installed: Iterable[str] = (), used: Iterable[str] = ()) -> Plan:
    """The plan of a bus.

    Args:
        bus: with its plugins registered.
        installed: names of every installed plugin.
        used: names of those that the run uses.

    Returns:
        Events in the order of the loop; implementations in the order they run, outermost wrapper
        first. An event that only hatbus itself serves holds its default alone.
    """
    reasons = {placed.name: placed.reasons for placed in bus.order()}
    tasks: list[str | None] = [task for task in bus.scopes if task is not None] or [None]
    events = {}
    for event in EVENTS:
        found: dict[int, HookImpl] = {}
        for task in tasks:
            for impl in bus.implementations(event, task):
                found.setdefault(id(impl), impl)
        ordered = in_turn(EVENTS[event], found.values(), list(reasons))
        entries = [_entry(event, i, bus.members[i.plugin_name], reasons) for i in ordered]
        if entries:
            events[event] = tuple(entries)
    return Plan(events, tuple(sorted(set(installed) - set(used))))


def _entry(
    event: str, impl: HookImpl, member: Member, reasons: dict[str, tuple[str, ...]]
) -> Entry:
    declared = member.declared
    if member.core:
        why: tuple[str, ...] = ("outermost",) if impl.wrapper else ("last",)
    else:
        why = reasons[member.name]
    return Entry(
        plugin=member.name.removeprefix("core.") if member.core else member.name,
        does=_role(event, impl, member),
        why=why,
        tasks=declared.tasks,
        every=declared.every,
        ranks=declared.ranks,
        writes=declared.writes,
        source=CORE if member.core else source_of(impl.plugin),
        place=0 if member.core else 1 + list(reasons).index(member.name),
        turn="" if member.core else turn_of(impl),
    )


def _role(event: str, impl: HookImpl, member: Member) -> str:
    if impl.wrapper:
        return "wraps"
    if EVENTS[event].kind == MOMENT:
        return "hears"
    if EVENTS[event].kind == DECISION:
        return "decides"
    return "default" if member.core else "replaces"
