"""The text of a frozen dispatch function while it is written; see ``hatbus.bus.dispatch``."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.blame import FILE_PREFIX
from hatbus.events.payload import BATCH, ON_REQUEST

if TYPE_CHECKING:
    from pluggy import HookImpl

    from hatbus.events.training import Event

Frozen = Callable[..., Any]
_serial: Final = count()


@dataclass(slots=True)
class Source:
    """Lines of a function being written, and the names they use."""

    event: Event
    filename: str
    lines: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    calls: dict[int, HookImpl] = field(default_factory=dict)

    def add(self, indent: int, text: str, impl: HookImpl | None = None) -> None:
        """Adds a line; ``impl`` is the implementation that it calls."""
        self.lines.append("    " * indent + text)
        if impl is not None:
            self.calls[len(self.lines)] = impl

    def compile(self) -> Frozen:
        """The function, which tracebacks show in full."""
        text = "\n".join(self.lines) + "\n"
        exec(compile(text, self.filename, "exec"), self.names)  # noqa: S102 - the point of frozen dispatch
        linecache.cache[self.filename] = (len(text), None, text.splitlines(True), self.filename)
        frozen: Frozen = self.names[self.event.name]
        frozen.__doc__ = self.event.doc
        return frozen


def begin(event: Event, impls: list[HookImpl]) -> Source:
    """The head of a function that calls ``impls``, with the arguments they want."""
    filename = f"{FILE_PREFIX}{event.name} #{next(_serial)}>"
    source = Source(event, filename)
    carried = parameters(event)
    source.add(0, f"def {event.name}({', '.join(['ctx', *carried])}):")
    for name in dict.fromkeys(n for impl in impls for n in wanted(event, impl)):
        if name != "ctx" and name not in carried:
            source.add(1, f"{name} = ctx.{name}")
    return source


def parameters(event: Event) -> list[str]:
    """The arguments of an event that are not attributes of the context."""
    return [name for name in event.arguments if name not in BATCH]


def wanted(event: Event, impl: HookImpl) -> list[str]:
    """The event's arguments that an implementation takes, ``**kwargs`` included."""
    named = [n for n in (*impl.argnames, *impl.kwargnames) if n in event.arguments]
    parameters = inspect.signature(impl.function).parameters.values()
    more = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if any(takes_all(p) for p in parameters):
        more = [n for n in event.arguments if n not in ON_REQUEST]
    return named + [n for n in more if n in event.arguments and n not in named]


def takes_all(parameter: inspect.Parameter) -> bool:
    """Whether this is a ``**kwargs`` that is used; a name such as ``**_more`` says it is not."""
    return parameter.kind is inspect.Parameter.VAR_KEYWORD and parameter.name[0] != "_"


def arguments(event: Event, impl: HookImpl) -> str:
    """The arguments of an implementation's call."""
    positional = list(impl.argnames)
    keywords = [n for n in wanted(event, impl) if n not in positional]
    return ", ".join([*positional, *(f"{n}={n}" for n in keywords)])
