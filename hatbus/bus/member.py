"""One plugin as the bus holds it: its name, what it declared, and when it is due."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hatbus.bus.intervals import Interval
    from hatbus.events.declare import Declaration

CORE: Final = "core."
"""What the names of hatbus's own parts begin with; no plugin's may."""


def is_core(name: str) -> bool:
    """Whether a part of hatbus itself is registered under this name."""
    return name.startswith(CORE)


@dataclass(slots=True)
class Member:
    """One registered plugin.

    Attributes:
        name: of the instance.
        plugin: the object itself.
        declared: its place in the order and its filters, those of the job included.
        position: how many plugins were registered before it.
        core: whether it is a part of hatbus itself.
        interval: when it is due; None: always.
        kind: its entry-point name.
    """

    name: str
    plugin: object
    declared: Declaration
    position: int
    core: bool
    interval: Interval | None = None
    kind: str = ""
