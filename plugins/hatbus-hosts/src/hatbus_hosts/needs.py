"""What plugins need of the loop they run in, and what a host can deliver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from types import CodeType, MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus.errors import PluginError
from hatbus.events import DECISION, EVENTS, MOMENT, SPAN

if TYPE_CHECKING:
    from hatbus import Bus
    from hatbus.bus import Member

WISHES: Final = ("stop run", "stop epoch", "save", "validate")
"""What plugins may ask for."""


class Need(NamedTuple):
    """One thing that a plugin needs: a row of the table of what hosts deliver.

    Attributes:
        row: ``"on_step_end"``, ``"forward wrapped"``, ``"forward replaced"``, ``"skip_update"``,
            ``"request save"``.
        plugin: the instance's name.
    """

    row: str
    plugin: str


def rows() -> tuple[str, ...]:
    """Everything that a plugin can need, in the order of the loop."""
    found: list[str] = []
    for event in EVENTS.values():
        kinds = {SPAN: (" wrapped", " replaced"), MOMENT: ("",), DECISION: ("",)}[event.kind]
        found += [f"{event.name}{kind}" for kind in kinds]
    return (*found, *(f"request {wish}" for wish in WISHES), "state saved")


class Capabilities(Mapping[str, "bool | str"]):
    """What a host delivers, by row: True, a sentence that says with what limit, or False.

    What is not named is not delivered.
    """

    def __init__(self, cells: Mapping[str, bool | str] | None = None) -> None:
        unknown = set(cells or ()) - set(rows())
        if unknown:
            raise KeyError(f"no row {min(unknown)!r}")
        self._cells = MappingProxyType({row: (cells or {}).get(row, False) for row in rows()})

    def __getitem__(self, row: str) -> bool | str:
        return self._cells[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


def check_needs(bus: Bus, host: str, can: Mapping[str, bool | str]) -> None:
    """Refuses plugins that need what a host cannot deliver.

    Raises:
        PluginError: every such plugin and what it needs, in one line each.
    """
    lacking = [need for need in needs_of(bus) if not can[need.row]]
    if lacking:
        lines = [
            f"plugin {need.plugin!r} needs {described(need.row)}, which {host} cannot deliver"
            for need in lacking
        ]
        lines[-1] += "; take it off, or use hatbus's Trainer (docs/hosts.md has the table)"
        raise PluginError("\n".join(lines))


def check_writes(bus: Bus, host: str, writes: Mapping[str, str]) -> None:
    """Refuses plugins that write what the host writes itself.

    Args:
        bus: of the plugins.
        host: its name.
        writes: a claim, such as ``"grad.clip"``, to how the host is stopped from writing it.

    Raises:
        PluginError: the first one.
    """
    for member in bus.members.values():
        for claim in member.declared.writes:
            if claim in writes:
                raise PluginError(
                    f"plugin {member.name!r} and {host} both write {claim!r}; {writes[claim]}"
                )


def described(row: str) -> str:
    """A row in words."""
    name, _, kind = row.partition(" ")
    if name == "request":
        return f"its request {kind!r}"
    how = {"wrapped": "to wrap ", "replaced": "to replace "}.get(kind, "")
    return f"{how}{name!r}"


def needs_of(bus: Bus) -> list[Need]:
    """What the plugins on a bus need, read off their hookimpls and the requests they make."""
    found: list[Need] = []
    for event in EVENTS.values():
        for impl in bus.implementations(event.name):
            member = bus.members[impl.plugin_name]
            if member.core:
                continue
            kind = ""
            if event.kind == SPAN:
                kind = " wrapped" if impl.wrapper else " replaced"
            found.append(Need(f"{event.name}{kind}", member.name))
    for member in bus.members.values():
        if not member.core:
            found += [Need(f"request {wish}", member.name) for wish in wishes_of(member)]
    return found


def is_read(bus: Bus, name: str, *, but: str) -> bool:
    """Whether a plugin can see an attribute of the context: it names it, or is given all.

    Args:
        bus: of the plugins.
        name: an argument of events.
        but: a plugin that is not counted.
    """
    every = {"ctx", "loop", name}
    found = [impl for event in EVENTS for impl in bus.implementations(event)]
    return any(
        parameter.name in every or parameter.kind is parameter.VAR_KEYWORD
        for impl in found
        if impl.plugin_name != but and not bus.members[impl.plugin_name].core
        for parameter in signature(impl.function).parameters.values()
    )


def is_replaced(bus: Bus, span: str) -> bool:
    """Whether a plugin does a span in the place of whoever does it without one."""
    found = bus.implementations(span)
    return any(not impl.wrapper and not bus.members[impl.plugin_name].core for impl in found)


def wishes_of(member: Member) -> tuple[str, ...]:
    """What a plugin's methods ask of ``ctx.control``; what other functions ask, nobody sees here.

    A plugin may say it itself: ``requests = ("save",)`` on its class.
    """
    said = getattr(member.plugin, "requests", None)
    if isinstance(said, tuple):
        return tuple(wish for wish in WISHES if wish in said)
    found = {wish for code in _codes(type(member.plugin)) for wish in _asked(code)}
    return tuple(wish for wish in WISHES if wish in found)


def _asked(code: CodeType) -> Iterator[str]:
    if "control" not in code.co_names:
        return
    for wish in ("save", "validate"):
        if wish in code.co_names:
            yield wish
    if "stop" in code.co_names:
        yield "stop epoch" if "epoch" in code.co_consts else "stop run"


def _codes(cls: type[Any]) -> Iterator[CodeType]:
    for base in cls.__mro__:
        for value in vars(base).values():
            code = getattr(getattr(value, "__func__", value), "__code__", None)
            if isinstance(code, CodeType):
                yield from _nested(code)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _nested(one)
