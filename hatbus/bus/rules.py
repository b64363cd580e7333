"""Rules over all plugins of a bus: one writer of each thing, one replacement of each span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.errors import PluginError
from hatbus.events.training import EVENTS, SPAN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pluggy import HookRelay

    from hatbus.bus.member import Member
    from hatbus.events.declare import Declaration


def check_claims(members: Iterable[Member]) -> None:
    """Refuses two writers of one thing.

    Raises:
        PluginError: which two, and of what.
    """
    writers: dict[str, list[Member]] = {}
    for member in members:
        for claim in dict.fromkeys(member.declared.writes):
            for other in writers.setdefault(claim, []):
                if not _apart(other.declared, member.declared):
                    raise PluginError(
                        f"plugins {other.name!r} and {member.name!r} both write {claim!r}; "
                        f"switch one off (-p no:{member.name})"
                    )
            writers[claim].append(member)


def check_replacements(members: Mapping[str, Member], hooks: HookRelay) -> None:
    """Refuses two replacements of one span.

    Args:
        members: by name.
        hooks: pluggy's callers, with every member registered.

    Raises:
        PluginError: which two, and of what.
    """
    for event in EVENTS.values():
        if event.kind != SPAN:
            continue
        found: dict[str, Member] = {}
        for impl in reversed(getattr(hooks, event.name).get_hookimpls()):
            member = members[impl.plugin_name]
            if impl.wrapper or member.core:
                continue
            for other in found.values():
                one, two = other.declared, member.declared
                shared = event.name in one.shares and event.name in two.shares
                if not shared and not (event.per_task and _apart(one, two)):
                    raise PluginError(
                        f"plugins {other.name!r} and {member.name!r} both replace "
                        f"{event.name}; {_way_out(other, member)}"
                    )
            found[member.name] = member


def _way_out(other: Member, member: Member) -> str:
    """What to do about two plugins that do one thing; a class may know what two of it are for."""
    known = getattr(type(member.plugin), "instead_of_two", "")
    if known and type(other.plugin) is type(member.plugin):
        return str(known)
    return f"switch one off (-p no:{member.name}), or make it a wrapper"


def _apart(one: Declaration, other: Declaration) -> bool:
    """Whether two plugins are bound to tasks that never meet."""
    return bool(one.tasks and other.tasks and not set(one.tasks) & set(other.tasks))
