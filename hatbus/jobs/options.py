"""A constructor's signature as the schema of a table: names, types, defaults.

``check`` compares a table with a signature and collects every problem as one line. Values that TOML
cannot hold are named: see ``hatbus.jobs.references``.
"""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import pathlib
import typing
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus.errors import JobError, did_you_mean
from hatbus.jobs.type_hints import NONE, Mismatch, accepted, accepts_none, convert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_KINDS: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Option(NamedTuple):
    """One option.

    Attributes:
        name: of the parameter.
        hint: its type; ``Any`` where none can be known.
        default: ``inspect.Parameter.empty`` when it is required.
    """

    name: str
    hint: Any
    default: Any

    @property
    def is_required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


class Schema(NamedTuple):
    """The options of a class or function.

    Attributes:
        options: by name, in order.
        takes_more: whether it has ``**kwargs``.
    """

    options: dict[str, Option]
    takes_more: bool


def schema_of(target: Callable[..., Any]) -> Schema:
    """Reads a signature; annotations that cannot be evaluated count as ``Any``."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # written in C, without a signature
        return Schema({}, takes_more=True)
    names = _Names(_globals_of(target))
    options = {
        p.name: Option(p.name, _hint(p, names), p.default) for p in parameters if p.kind in _KINDS
    }
    return Schema(options, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters))


def check(
    target: Callable[..., Any],
    table: Mapping[str, Any],
    where: str,
    find: Callable[[str], Any] | None = None,
    *,
    also: Iterable[str] = (),
    what: str = "option",
) -> tuple[dict[str, Any], list[str]]:
    """Compares a table with a signature.

    Args:
        target: the class or function that will get the values.
        table: what the job says.
        where: such as ``"in job.toml [plugins.cos_lr]"``.
        find: finds the object that a text names (``References.find``); None where none can be.
        also: further names for did-you-mean, accepted elsewhere.
        what: what a key of this table is called in messages.

    Returns:
        The values, converted, and the problems, one line each.
    """
    schema = schema_of(target)
    values, problems = {}, []
    for name, value in table.items():
        option = schema.options.get(name)
        if option is None and not schema.takes_more:
            known = {*schema.options, *also}
            problems.append(f"unknown {what} {name!r} {where}{did_you_mean(name, known)}")
            continue
        hint = option.hint if option else Any
        try:
            values[name] = convert(value, hint, find)
        except Mismatch:
            words = accepted(hint) + _for_none(value, hint)
            problems.append(f"{what} {name!r} is {value!r} {where}; accepted: {words}")
        except JobError as error:
            problems.append(f"{what} {name!r} {where}: {error}")
    problems += [
        f"missing {what} {option.name!r} {where}; accepted: {accepted(option.hint)}"
        for option in schema.options.values()
        if option.is_required and option.name not in table
    ]
    return values, problems


def _for_none(value: Any, hint: Any) -> str:
    """What to write for None, where that seems to be meant."""
    is_meant = isinstance(value, str) and value.lower() in ("", "none", "null", "nil", "off")
    return f"; for None write {NONE!r}" if is_meant and accepts_none(hint) else ""


def taken_keys(options: Iterable[str], given: Iterable[str], schema: Schema) -> list[str]:
    """Options of a constructor that a table cannot give: there the key is the bus's own.

    Args:
        options: the keys of the bus.
        given: those that the table has.
        schema: of the constructor.
    """
    needed = {*given, *(name for name, one in schema.options.items() if one.is_required)}
    return [name for name in options if name in schema.options and name in needed]


def _hint(parameter: inspect.Parameter, names: _Names) -> Any:
    """The evaluated annotation; without one, the type of the default."""
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        simple = type(parameter.default) in (bool, int, float, str)
        return type(parameter.default) if simple else Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {}, names)  # noqa: S307 - the annotation of an imported class
    except Exception:  # noqa: BLE001 - an annotation may say anything
        return Any


def _globals_of(target: Callable[..., Any]) -> dict[str, Any]:
    function: Any = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    found: dict[str, Any] = getattr(getattr(function, "__func__", function), "__globals__", {})
    return found


class _Names(dict[str, Any]):
    """The names an annotation may use, those under ``if TYPE_CHECKING`` included."""

    def __missing__(self, name: str) -> Any:
        for module in (builtins, typing, collections.abc, pathlib):
            if hasattr(module, name):
                return getattr(module, name)
        return Any
