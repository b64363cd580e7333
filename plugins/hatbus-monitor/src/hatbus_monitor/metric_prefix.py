"""What stands in front of a metric's published name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus.log import log
from hatbus.loop import instance_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus import Bus, Context


def free_prefix(updater: Any, ctx: Context) -> str:
    """``"train/"``, ``"train/det/"``, or the user's; with the instance name where that is taken.

    Args:
        updater: with ``log_prefix``, ``metrics`` and ``name_prefix``.
        ctx: the run; updaters that come before it on the bus have their names already.
    """
    usual = usual_prefix(updater, ctx)
    taken = {name: who for who, other in _earlier(updater, ctx.bus) for name in other}
    hits = [name for name in updater.metrics if f"{usual}{name}" in taken]
    if not hits:
        return usual
    mine = instance_name(ctx, updater)
    found, name = f"{usual}{mine}/", f"{usual}{hits[0]}"
    if ctx.rank == 0 and updater.name_prefix != found:  # once, not in every validation
        log.warning(
            "metric_updater: %r and %r would both publish %r; %r publishes %r in its place, unless "
            "you give it a log_prefix",
            taken[name],
            mine,
            name,
            mine,
            f"{found}{hits[0]}",
        )
    return found


def usual_prefix(updater: Any, ctx: Context) -> str:
    """``"train/"``, ``"train/det/"``, or the user's."""
    words: str = updater.log_prefix
    if words:
        return words if words[-1] in "/_- " else f"{words}/"
    members = ctx.bus.members.values()
    tasks = next((m.declared.tasks for m in members if m.plugin is updater), ())
    parts = ["train"] if ctx.optimizer is not None else []
    return "".join(f"{part}/" for part in [*parts, *(tasks if len(tasks) == 1 else ())])


def _earlier(updater: Any, bus: Bus) -> Iterator[tuple[str, list[str]]]:
    """Instance name and published names of the updaters that come before this one."""
    for place in bus.order():
        other = bus.members[place.name].plugin
        if other is updater:
            return
        if isinstance(other, type(updater)):
            yield place.name, [f"{other.name_prefix}{name}" for name in other.metrics]
