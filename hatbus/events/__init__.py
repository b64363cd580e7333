"""The contract of the loop and its plugins: every event, and what a class says about its place.

A plugin marks its methods with ``hatbus.hookimpl`` and its class with ``hatbus.plugin``. Public
beside them: the table of all events and their arguments, the stages, and what a plugin declared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.events.declare import (
        OVERRIDABLE,
        RANKS,
        STAGES,
        Declaration,
        declaration_of,
        is_declared,
        redeclare,
    )
    from hatbus.events.event import DECISION, MOMENT, PAIRS, SPAN, Event
    from hatbus.events.payload import ARGUMENTS, ON_REQUEST
    from hatbus.events.training import EVENTS

__all__ = [
    "ARGUMENTS",
    "DECISION",
    "EVENTS",
    "MOMENT",
    "ON_REQUEST",
    "OVERRIDABLE",
    "PAIRS",
    "RANKS",
    "SPAN",
    "STAGES",
    "Declaration",
    "Event",
    "declaration_of",
    "is_declared",
    "redeclare",
]

__getattr__ = lazily(
    __name__,
    Declaration="declare",
    OVERRIDABLE="declare",
    RANKS="declare",
    STAGES="declare",
    declaration_of="declare",
    is_declared="declare",
    redeclare="declare",
    DECISION="event",
    EVENTS="training",
    Event="event",
    MOMENT="event",
    PAIRS="event",
    SPAN="event",
    ARGUMENTS="payload",
    ON_REQUEST="payload",
)
