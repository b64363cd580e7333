"""What is wrong with a plugin class or its distribution, told before anybody runs it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus.authoring.import_time import settings_changed
from hatbus.bus.registration import (
    BOTH_TURNS,
    STATE,
    admit,
    foreign_name,
    misspelt,
    no_event,
    without_event,
)
from hatbus.discovery.first_party import FIRST_PARTY, is_first_party, normalized
from hatbus.errors import PluginError, did_you_mean
from hatbus.events.declare import Declaration, names
from hatbus.events.foreign_names import FOREIGN_NAMES, meant
from hatbus.events.training import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus.discovery.class_source import ClassSource, Method, Sources
    from hatbus.discovery.entry_points import Found

_LISTS: Final = ("before", "after", "tasks", "writes", "shares")


class Offer(NamedTuple):
    """One entry point, installed or written in a pyproject.toml."""

    name: str
    value: str
    distribution: str


def problems_of(offer: Offer, sources: Sources) -> list[str]:
    """What the source of one entry point has wrong, read without importing it."""
    return [*_name_problems(offer), *class_problems(offer.value, sources)]


def class_problems(value: str, sources: Sources) -> list[str]:
    """What the source of ``"package.module:Class"`` has wrong, read without importing it."""
    module, colon, attr = value.partition(":")
    module, attr = module.strip(), attr.partition("[")[0].strip()
    if not colon or not attr:
        return [f"{value!r} names no class; accepted: 'package.module:Class'"]
    reading = sources.read(module, attr)
    if reading is not None:
        return [*_class_problems(reading), *settings_changed(sources, module)]
    return [sources.why_unreadable(module) or f"module {module!r} has no class {attr!r}"]


def requirement_problems(requirements: list[str]) -> list[str]:
    """What a distribution's requirements say wrongly about hatbus."""
    for requirement in requirements:
        name, bounds = _split(requirement)
        if normalized(name) == "hatbus":
            bounded = ("<" in bounds and ">" in bounds) or "~=" in bounds or "==" in bounds
            return [] if bounded else [f"requires {requirement!r}; write 'hatbus>=0.1,<0.2'"]
    return ["does not require hatbus; add 'hatbus>=0.1,<0.2' to its dependencies"]


def load_problems(found: Found) -> list[str]:
    """What importing an installed class and admitting it to a bus brings up."""
    try:
        cls = found.load()
        admit(object.__new__(cls), found.name)
    except PluginError as error:
        return [str(error)]
    except TypeError as error:
        return [f"{found.value} cannot be made: {error}"]
    return []


def _split(requirement: str) -> tuple[str, str]:
    matched = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)", requirement)
    return (matched[1], matched[2]) if matched else ("", "")


def _name_problems(offer: Offer) -> Iterator[str]:
    own = FIRST_PARTY.get(offer.name)
    if own is not None and not is_first_party(offer.distribution):
        yield f"the name {offer.name!r} is reserved for {own.distribution}; choose another"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", offer.name):
        yield f"the name {offer.name!r} is awkward in a job; write it like 'my_plugin'"


def _class_problems(reading: ClassSource) -> Iterator[str]:
    yield from _declaration_problems(reading.declared)
    for method in reading.methods.values():
        place = f"{reading.file.name} line {method.line}: {method.name}"
        for problem in _method_problems(method, reading):
            yield f"{place} {problem}"
    is_told = any(misspelt(name) or name in FOREIGN_NAMES for name in reading.methods)
    if not reading.events and not (is_told and reading.is_mixin):
        yield without_event(reading.methods, is_mixin=reading.is_mixin)
    if reading.compares:
        yield (
            "compares by value, so two of it cannot be told apart; "
            "remove __eq__ (for a dataclass: @dataclass(eq=False))"
        )
    has = [name for name in STATE if name in reading.methods]
    if len(has) == 1 and reading.is_whole:
        (lacks,) = set(STATE) - set(has)
        yield f"has {has[0]} and no {lacks}; define both, or neither"


def _declaration_problems(declared: dict[str, Any]) -> Iterator[str]:
    """What ``Declaration`` refuses; values that are no literals are left to the import."""
    try:
        given: dict[str, Any] = {k: names(v) if k in _LISTS else v for k, v in declared.items()}
        Declaration(**given)
    except (PluginError, TypeError) as error:
        yield f"@plugin: {error}"


def _method_problems(method: Method, reading: ClassSource) -> Iterator[str]:
    counts = method.is_marked or reading.overrides(method)
    if not counts:
        if method.event in EVENTS:
            yield "is named like an event but not marked; put @hookimpl above it"
        elif event := misspelt(method.name):
            yield no_event(event)
        elif reading.is_mixin and method.name in FOREIGN_NAMES:
            yield foreign_name(method.name)
        return
    if method.event not in EVENTS:
        yield f"implements unknown event {method.event!r}{meant(method.event)}"
        return
    if method.is_async:
        yield "is async; events are plain calls"
    if method.mark.get("tryfirst") and method.mark.get("trylast"):
        yield BOTH_TURNS
    yield from _wrapper_problems(method)
    yield from _argument_problems(method)


def _wrapper_problems(method: Method) -> Iterator[str]:
    if method.mark.get("hookwrapper"):
        yield "is an old-style wrapper; use @hookimpl(wrapper=True)"
        return
    if method.is_wrapper and not method.has_yield:
        yield "is a wrapper and must yield once: `result = yield; return result`"
    if method.has_yield and not method.is_wrapper:
        yield "yields; mark it @hookimpl(wrapper=True)"


def _argument_problems(method: Method) -> Iterator[str]:
    known = EVENTS[method.event].arguments
    if method.rest:
        yield f"takes *{method.rest}; name the arguments it wants"
    for argument in method.by_keyword:
        yield f"takes {argument!r} by keyword only; remove the `*` before it"
    for argument in method.required:
        if argument not in known:
            yield f"wants unknown argument {argument!r}{did_you_mean(argument, known)}"
