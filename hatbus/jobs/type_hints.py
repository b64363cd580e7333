"""Compares values from a job with type hints, and says in words what a hint accepts."""

from __future__ import annotations

import types
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Mapping,
    MutableMapping,
    MutableSequence,
    Sequence,
)
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from hatbus.jobs.references import ACCEPTED, Built, Call, is_reference

Find = Callable[[str], Any]
SEQUENCES: Final = (list, Sequence, MutableSequence, Iterable, Collection)
SETS: Final = (tuple, set, frozenset)
TABLES: Final = (dict, Mapping, MutableMapping)
_SIMPLE: Final[dict[Any, tuple[tuple[type, ...], str]]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a string"),
    Path: ((str,), "a path"),
    PurePath: ((str,), "a path"),
}
_TOML: Final = (str, int, float, list, dict)
CALL: Final = "call"
NONE: Final = "@none"
"""How a job writes None, which TOML has not."""
INFINITE: Final = ("inf", "+inf", "-inf")
"""What a number may be as a text, as in torch: ``norm_type = "inf"``; TOML has ``inf`` too."""


class Mismatch(Exception):  # noqa: N818 - caught next door, never shown
    """A value that does not fit its hint."""


def convert(value: Any, hint: Any, find: Find | None) -> Any:
    """The value as the hint wants it.

    Args:
        value: from TOML: a string, number, boolean, list, table or date. Anything else is an
            object that was found before, and taken as it is.
        hint: the evaluated annotation.
        find: finds the object that a text names; None where no objects can be named.

    Returns:
        The value; lists as tuples or sets where the hint says so; named objects found;
        ``Built`` or ``Call`` where that must wait until the job's entry function has run.

    Raises:
        Mismatch: it does not fit.
        JobError: it names an object that is not there.
    """
    if not isinstance(value, _TOML) or value == NONE:
        return _none(hint) if isinstance(value, str) else value
    if find is not None and isinstance(value, str) and value.startswith("@"):
        return value[1:] if value.startswith("@@") else Built(value[1:])
    if find is not None and isinstance(value, dict) and isinstance(value.get(CALL), str):
        arguments = {k: convert(v, Any, find) for k, v in value.items() if k != CALL}
        return Call(find(value[CALL]), arguments)
    hint = plain(hint)
    origin = get_origin(hint) or hint
    if origin is Any or origin is object:
        return _free(value, find)
    if origin in (Union, types.UnionType):
        return _one_of(value, get_args(hint), find)
    return _single(value, hint, origin, find)


def _none(hint: Any) -> None:
    if not accepts_none(hint):
        raise Mismatch


def accepts_none(hint: Any) -> bool:
    """Whether None fits a hint."""
    hint = plain(hint)
    if get_origin(hint) in (Union, types.UnionType, Literal):
        return any(one is None or accepts_none(one) for one in get_args(hint))
    return hint in (Any, object, None, type(None))


def accepted(hint: Any) -> str:
    """What a hint accepts, in words."""
    hint = plain(hint)
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        words = [accepted(member) for member in inner if member is not type(None)]
        return ", or ".join(dict.fromkeys(words))
    if origin is Literal or is_enum(origin):
        words = list(origin.__members__) if is_enum(origin) else [w for w in inner if w is not None]
        return ", ".join(map(repr, words))
    if origin in _SIMPLE:
        return _SIMPLE[origin][1]
    if origin in TABLES:
        return _accepted_table(inner)
    if origin in (*SEQUENCES, *SETS):
        return _accepted_list(origin, inner)
    return "any value" if origin in (Any, object) else ACCEPTED


def is_enum(hint: Any) -> bool:
    """Whether a hint is an ``Enum`` class."""
    return isinstance(hint, type) and issubclass(hint, Enum)


def _accepted_table(inner: tuple[Any, ...]) -> str:
    values = plain(inner[1]) if len(inner) > 1 else Any
    if values in (Any, object) or isinstance(values, TypeVar):
        return "a table"
    return f"a table, each value of it {accepted(values)}"


def _accepted_list(origin: Any, inner: tuple[Any, ...]) -> str:
    if origin is tuple and len(inner) > 1 and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}: {', '.join(accepted(member) for member in inner)}"
    if not inner or plain(inner[0]) is Any or isinstance(inner[0], TypeVar):
        return "a list"
    return f"a list, each of it {accepted(inner[0])}"


def plain(hint: Any) -> Any:
    """The hint without ``Annotated`` and without type variables."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if isinstance(hint, TypeVar):
        return hint.__bound__ or Any
    return getattr(hint, "__supertype__", hint)


def _free(value: Any, find: Find | None) -> Any:
    """A value that may be anything: texts that look like names of objects are taken as such."""
    if isinstance(value, str):
        return find(value) if find and is_reference(value) else value
    if isinstance(value, list):
        return [convert(item, Any, find) for item in value]
    if isinstance(value, dict):
        return {key: convert(item, Any, find) for key, item in value.items()}
    return value


def _one_of(value: Any, members: tuple[Any, ...], find: Find | None) -> Any:
    """The first member that fits; a text is taken as text if any member can be one."""
    members = tuple(plain(member) for member in members)
    if isinstance(value, str):
        members = tuple(sorted(members, key=lambda m: not _is_textual(m)))
    for member in members:
        try:
            return convert(value, member, find)
        except Mismatch:
            continue
    raise Mismatch


def _is_textual(hint: Any) -> bool:
    return hint in (str, Path, PurePath) or get_origin(hint) is Literal or is_enum(hint)


def _single(value: Any, hint: Any, origin: Any, find: Find | None) -> Any:
    """A value against a hint that is no union."""
    if origin is Literal:
        return _literal(value, get_args(hint))
    if origin in _SIMPLE:
        return _simple(value, origin)
    if is_enum(origin):
        return _member(value, origin)
    if find and isinstance(value, str) and is_reference(value):
        return _found(value, origin, find)
    if origin in TABLES and isinstance(value, dict):
        inner = (*get_args(hint), Any, Any)[1] if get_args(hint) else Any
        return {key: convert(item, inner, find) for key, item in value.items()}
    if origin in (*SEQUENCES, *SETS) and isinstance(value, list):
        return _list(value, get_args(hint), origin, find)
    raise Mismatch


def _member(value: Any, kind: type[Enum]) -> Enum:
    """A member of an enumeration, by its name or else its value."""
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    for member in kind:
        if member.value == value and type(member.value) is type(value):
            return member
    raise Mismatch


def _literal(value: Any, words: tuple[Any, ...]) -> Any:
    for word in words:
        if word == value and type(word) is type(value):
            return value
    raise Mismatch


def _simple(value: Any, hint: Any) -> Any:
    if hint is float and value in INFINITE:
        return float(value)
    if not isinstance(value, _SIMPLE[hint][0]) or (isinstance(value, bool) and hint is not bool):
        raise Mismatch
    return hint(value) if hint in (Path, PurePath) else value


def _found(text: str, origin: Any, find: Find) -> Any:
    found = find(text)
    if origin is Callable and not callable(found):
        raise Mismatch
    return found


def _list(value: list[Any], inner: tuple[Any, ...], origin: Any, find: Find | None) -> Any:
    """Each item against its hint. HAT writes ``Tuple[float]`` for tuples of any length."""
    hints = [inner[0] if inner else Any] * len(value)
    if origin is tuple and len(inner) > 1 and inner[-1] is not Ellipsis:
        if len(inner) != len(value):
            raise Mismatch
        hints = list(inner)
    items = [convert(item, hint, find) for item, hint in zip(value, hints, strict=True)]
    return origin(items) if origin in SETS else items
