"""The order of plugins: stage, then before/after, then the job's order, then the name.

The same order holds in every event, but for methods that say ``tryfirst`` or ``trylast``. It
depends on what plugins and the job declare, never on what was installed or registered first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from hatbus.bus.member import is_core
from hatbus.errors import OrderError
from hatbus.events.declare import STAGES
from hatbus.events.training import SPAN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pluggy import HookImpl

    from hatbus.events.declare import Declaration
    from hatbus.events.training import Event

TURNS: Final = ("tryfirst", "", "trylast")
"""How a method's mark places it among the plugins of its event, first to last."""


@dataclass(frozen=True, slots=True)
class Place:
    """One plugin to be put in order.

    Attributes:
        name: of the instance.
        declared: what it and the job say.
        position: its place in the job.
        kind: the name of its entry point: what another class can know it by.
    """

    name: str
    declared: Declaration
    position: int
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """One plugin in order, and why it stands where it does.

    Attributes:
        name: of the instance.
        reasons: each in words, as ``hatbus explain`` prints them.
    """

    name: str
    reasons: tuple[str, ...] = field(default=())


def resolve(places: Sequence[Place]) -> list[Placed]:
    """Puts plugins in order.

    Args:
        places: the plugins of a run, in any order, names unique.

    Returns:
        The plugins, first to run first, each with the reasons for its place.

    Raises:
        OrderError: the declared order has a cycle; the message prints it.
    """
    edges = _edges(places)
    keys = {p.name: (STAGES.index(p.declared.stage), p.position, p.name) for p in places}
    waiting = {name: set(before) for name, before in edges.items()}
    ready = [keys[name] for name, before in waiting.items() if not before]
    heapify(ready)
    ordered: list[str] = []
    while ready:
        name = heappop(ready)[2]
        ordered.append(name)
        del waiting[name]
        for other, before in waiting.items():
            if name in before:
                before.discard(name)
                if not before:
                    heappush(ready, keys[other])
    if waiting:
        raise OrderError(_explain_cycle(edges, waiting, places))
    by_name = {p.name: p for p in places}
    return [Placed(name, _reasons(by_name[name], edges[name])) for name in ordered]


def in_turn(event: Event, impls: Iterable[HookImpl], names: Sequence[str]) -> list[HookImpl]:
    """The implementations of one event in the order they run, outermost wrapper first.

    hatbus's own wrappers go around all others, its calls before and its defaults behind those of
    plugins. ``tryfirst`` and ``trylast`` of a plugin's method place it first and last among the
    plugins, whatever their stages; those that say the same keep their order, which pluggy turns
    round for ``trylast``.

    Args:
        event: the event.
        impls: its implementations; hatbus's own in pluggy's order, first to run first.
        names: the plugins in order.
    """
    position = {name: index for index, name in enumerate(names)}

    def key(impl: HookImpl) -> tuple[int, int, int]:
        if is_core(impl.plugin_name):
            is_default = event.kind == SPAN or impl.trylast
            return 0 if impl.wrapper else 4 if is_default else 2, 0, 0  # sorting keeps their order
        turn = TURNS.index(turn_of(impl))
        return 1 if impl.wrapper else 3, turn, position[impl.plugin_name]

    return sorted(impls, key=key)


def turn_of(impl: HookImpl) -> str:
    """``"tryfirst"``, ``"trylast"``, or an empty string."""
    return "tryfirst" if impl.tryfirst else "trylast" if impl.trylast else ""


def _edges(places: Sequence[Place]) -> dict[str, dict[str, str]]:
    """For each plugin, the plugins that must come before it, each with the reason."""
    by_name = {p.name: p for p in places}
    edges: dict[str, dict[str, str]] = {p.name: {} for p in places}
    for later in places:
        for earlier in places:
            if STAGES.index(earlier.declared.stage) < STAGES.index(later.declared.stage):
                edges[later.name][earlier.name] = (
                    f"stage {earlier.declared.stage} before stage {later.declared.stage}"
                )
    for p in places:
        for word in p.declared.after:
            for other in _meant(word, by_name, but=p):
                edges[p.name][other] = f"{p.name} says after {word}"
        for word in p.declared.before:
            for other in _meant(word, by_name, but=p):
                edges[other][p.name] = f"{p.name} says before {word}"
    return edges


def _meant(word: str, by_name: dict[str, Place], but: Place) -> list[str]:
    """The instances that a name in before/after stands for: the one of that name, else the kind."""
    found = [word] if word in by_name else [p.name for p in by_name.values() if p.kind == word]
    return [name for name in found if name != but.name]


def _reasons(place: Place, before: dict[str, str]) -> tuple[str, ...]:
    soft = tuple(reason for reason in before.values() if " says " in reason)
    return (f"stage {place.declared.stage}", *soft, f"number {place.position + 1} in the job")


def _explain_cycle(
    edges: dict[str, dict[str, str]], waiting: dict[str, set[str]], places: Sequence[Place]
) -> str:
    path = [min(waiting)]
    while (following := min(waiting[path[-1]])) not in path:
        path.append(following)
    cycle = [*path[path.index(following) :], following]
    cycle.reverse()
    arrows = " -> ".join(cycle)
    why = "; ".join(edges[later][earlier] for earlier, later in pairwise(cycle))
    return f"the order of plugins has a cycle: {arrows} ({why}); {_way_out(cycle, places)}"


def _way_out(cycle: list[str], places: Sequence[Place]) -> str:
    """What to write into the job; one plugin in another's stage, or no before/after."""
    members = {p.name: p.declared for p in places if p.name in cycle}
    for name, declared in members.items():
        for other in (*declared.before, *declared.after):
            if other in members and members[other].stage != declared.stage:
                return (
                    f"before/after order plugins of one stage: write stage = "
                    f"{members[other].stage!r} into [plugins.{name}], or drop its before/after "
                    "(before = [], after = [])"
                )
    return "drop one before/after in the job (before = [], after = [])"
