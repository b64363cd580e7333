"""What an event is, and the table of all events; the events are in training.py and on_demand.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hatbus.events.declare import hookspec

Result = Any
"""What a span or decision returns; its docstring says which type."""
SPAN: Final = "span"
"""Kind of an event that is work: its first implementation with a result does it."""
MOMENT: Final = "moment"
"""Kind of an event that is a notice: its implementations return nothing."""
DECISION: Final = "decision"
"""Kind of an event that is a question: each implementation may give a reason, or None."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        name: what its implementations are called.
        kind: ``SPAN``, ``MOMENT`` or ``DECISION``.
        arguments: the names that an implementation may ask for.
        per_task: whether plugins that are bound to other tasks do not hear it.
        doc: when it comes, and what an implementation may do and return.
    """

    name: str
    kind: str
    arguments: tuple[str, ...]
    per_task: bool
    doc: str


DECLARED: Final[dict[str, Event]] = {}
"""The events that were declared so far; all of them once ``training`` is imported."""

PAIRS: Final[dict[str, tuple[str, str]]] = {
    "run_loop": ("on_loop_begin", "on_loop_end"),
    "run_epoch": ("on_epoch_begin", "on_epoch_end"),
    "run_step": ("on_step_begin", "on_step_end"),
    "run_batch": ("on_batch_begin", "on_batch_end"),
    "forward": ("on_forward_begin", "on_forward_end"),
    "backward": ("on_backward_begin", "on_backward_end"),
    "optimizer_step": ("on_optimizer_step_begin", "on_optimizer_step_end"),
    "validate": ("on_validation_begin", "on_validation_end"),
}
"""Span to the moments that surround it."""


def event(
    kind: str, arguments: tuple[str, ...], *more: str
) -> Callable[[Callable[[], Any]], Callable[..., Any]]:
    """Makes a hookspec of a documented stub: adds the named arguments and records the event."""

    def specify(stub: Callable[[], Any]) -> Callable[..., Any]:
        name, names = stub.__name__, (*arguments, *more)
        spec: Callable[..., Any] = eval(f"lambda {', '.join(names)}: None")  # noqa: S307 - pluggy reads the names off the code object
        spec.__name__ = spec.__qualname__ = name
        spec.__doc__, spec.__module__ = stub.__doc__, stub.__module__
        DECLARED[name] = Event(name, kind, names, "batch" in names, stub.__doc__ or "")
        return hookspec(firstresult=kind == SPAN)(spec)

    return specify
