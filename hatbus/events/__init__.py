"""The contract of loop and plugins: every event, its arguments, how a class declares itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.events.declare import DECLARATION, OVERRIDABLE, Declaration, declaration_of, plugin
    from hatbus.events.payload import ARGUMENTS, BATCH, LOOP, STEP
    from hatbus.events.training import DECISION, EVENTS, MOMENT, PAIRS, SPAN, Event

__all__ = [
    "ARGUMENTS",
    "BATCH",
    "DECISION",
    "DECLARATION",
    "EVENTS",
    "LOOP",
    "MOMENT",
    "OVERRIDABLE",
    "PAIRS",
    "SPAN",
    "STEP",
    "Declaration",
    "Event",
    "declaration_of",
    "plugin",
]

__getattr__ = lazily(
    __name__,
    ARGUMENTS="payload",
    BATCH="payload",
    DECISION="training",
    Declaration="declare",
    DECLARATION="declare",
    declaration_of="declare",
    Event="training",
    EVENTS="training",
    LOOP="payload",
    MOMENT="training",
    OVERRIDABLE="declare",
    PAIRS="training",
    plugin="declare",
    SPAN="training",
    STEP="payload",
)
