"""The page `reference.md`: every public name, made of signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain, pairwise
from typing import Any

from events_page import markdown  # type: ignore[import-not-found]  # beside this script

from hatbus.authoring.public_names import PublicName, public_modules, public_names
from hatbus.events import EVENTS

_HEAD = """\
<!-- Written by docs/refresh.py out of signatures and docstrings. -->

# Reference

Every public name, by the module that it is imported from: `from hatbus import Trainer`,
`from hatbus.loop import find_module`. What does not stand here is private and may change.

The [events](events.md), the [options of the plugins](plugins/index.md) and the
[command line](cli.md) have pages of their own.
"""
_FIRST = ("Trainer", "Context", "Bus", "BatchProcessor")
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:(?: .*)?(?:\n|$))+)", re.M)
_SESSION = re.compile(r"^>>> .*(?:\n\S.*)*", re.M)
_WORDS = {"Args": "Arguments"}
_WIDTH = 80


def reference_page() -> str:
    """The whole page."""
    return "\n\n".join([_HEAD.rstrip(), *map(_chapter, public_modules())]) + "\n"


def _chapter(module: str) -> str:
    """One module: what it is for, and its names."""
    said = markdown(importlib.import_module(module).__doc__ or "")
    names = [one for one in public_names() if one.module == module]
    elsewhere = {one.name for one in public_names() if one.module == "hatbus"}
    parts = [f"## {module}", said]
    for one in sorted(names, key=_rank):
        if module != "hatbus" and one.name in elsewhere:
            parts.append(f"### {one.name}\n\nSee [`hatbus.{one.name}`](#{one.name.lower()}).")
        else:
            parts.append("\n\n".join(_entry(one)))
    return "\n\n".join(parts)


def _rank(one: PublicName) -> tuple[int, str]:
    """What most want to know first, then classes, functions and constants."""
    if one.module == "hatbus" and one.name in _FIRST:
        return _FIRST.index(one.name), ""
    value = getattr(importlib.import_module(one.module), one.name)
    kind = 0 if inspect.isclass(value) else 1 if inspect.isroutine(value) else 2
    return len(_FIRST) + kind, one.name


def _entry(one: PublicName) -> Iterator[str]:
    """Heading, signature and docstring of one name; of a class, its methods too."""
    value = getattr(importlib.import_module(one.module), one.name)
    yield f"### {one.name}"
    if not inspect.isclass(value) and not inspect.isroutine(value):
        yield from _constant(one, value)
        return
    yield from _signature(one.name, value)
    yield docstring(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        yield from _parents(value)
    for name, member in members(value) if inspect.isclass(value) else ():
        yield f"#### {one.name}.{name}"
        if not isinstance(member, property):
            yield from _signature(name, member)
        yield docstring(inspect.getdoc(member) or "")


def _parents(cls: type) -> Iterator[str]:
    """The public classes that a class takes its other methods from."""
    public = {one.name for one in public_names()}
    above = [one for one in cls.__mro__[1:] if _is_ours(one) and one.__name__ in public]
    if above:
        links = ", ".join(f"[`{one.__name__}`](#{one.__name__.lower()})" for one in above)
        yield f"A {links}, whose methods it has too."


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("hatbus")


def _constant(one: PublicName, value: Any) -> Iterator[str]:
    shown = repr(value)
    is_plain = isinstance(value, (str, int, float, tuple)) and one.name != "__version__"
    if is_plain and len(shown) <= _WIDTH and "<" not in shown:
        yield f"```py\n{one.name} = {shown}\n```"
    yield docstring(constant_docs(one.home).get(one.name, ""))


@cache
def constant_docs(module: str) -> dict[str, str]:
    """The docstrings below the constants of a module."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    blocks = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.If))]
    found = {}
    for node, below in chain.from_iterable(pairwise(block) for block in blocks):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        is_said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if is_said and isinstance(targets[0], ast.Name):
            found[targets[0].id] = inspect.cleandoc(str(below.value.value))
    return found


def members(cls: type) -> list[tuple[str, Any]]:
    """The methods and properties of a class, and of parents that are not public themselves.

    Implementations of events are left out: the events have a page of their own.
    """
    public = {one.name for one in public_names()} - {cls.__name__}
    homes = [one for one in cls.__mro__ if _is_ours(one) and one.__name__ not in public]
    found: dict[str, Any] = {}
    for home in reversed(homes):
        for name, member in vars(home).items():
            is_method = isinstance(member, (property, classmethod, staticmethod))
            if not name.startswith("_") and (is_method or inspect.isfunction(member)):
                found[name] = getattr(member, "__func__", member)
    return [(n, m) for n, m in found.items() if n not in EVENTS and not hasattr(m, "hatbus_impl")]


def _signature(name: str, value: Any) -> Iterator[str]:
    """The signature in a block, a parameter to the line where it is long; none of an exception."""
    if inspect.isclass(value) and not _is_made(value):
        return
    parameters = [p for p in inspect.signature(value).parameters.values() if p.name != "self"]
    words: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in "".join(w[:1] for w in words):
            words.append("*")
        words.append(_parameter(parameter))
    given = inspect.signature(value).return_annotation
    has_none = inspect.isclass(value) or given is inspect.Signature.empty
    back = "" if has_none else f" -> {_type(given)}"
    line = f"{name}({', '.join(words)}){back}"
    if len(line) > _WIDTH:
        line = "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){back}"])
    yield f"```py\n{line}\n```"


def _is_made(cls: type) -> bool:
    """Whether a class has a constructor worth showing: one of hatbus's own."""
    return any({"__init__", "__new__"} & set(vars(one)) for one in cls.__mro__ if _is_ours(one))


def _type(hint: Any) -> str:
    """A type as it is written; named tuples keep theirs as forward references."""
    written = hint if isinstance(hint, str) else getattr(hint, "__forward_arg__", "")
    return written or getattr(hint, "__name__", str(hint))


def _parameter(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    said = "" if one.annotation is inspect.Parameter.empty else f": {_type(one.annotation)}"
    if one.default is inspect.Parameter.empty:
        return f"{stars}{one.name}{said}"
    return f"{stars}{one.name}{said}{' = ' if said else '='}{one.default!r}"


def docstring(text: str) -> str:
    """A docstring as Markdown, its sections as lists."""
    parts: list[str] = []
    end = 0
    for section in _SECTION.finditer(text):
        parts.append(_prose(text[end : section.start()]))
        parts += [f"**{_WORDS.get(section[1], section[1])}**", _items(section[1], section[2])]
        end = section.end()
    parts.append(_prose(text[end:]))
    return "\n\n".join(part for part in parts if part.strip())


def _items(section: str, body: str) -> str:
    """The entries of a section; one text where it names nothing."""
    text = inspect.cleandoc("\n" + body).replace("``", "`")
    if section in ("Returns", "Yields"):
        return text
    return re.sub(r"^(\*{0,2}\w[\w, *]*): ?", r"- `\1`: ", text, flags=re.M).replace(
        "\n    ", "\n  "
    )


def _prose(text: str) -> str:
    """What is no section; the lines of an interactive session in a block of their own."""
    return _SESSION.sub(r"```pycon\n\g<0>\n```", markdown(text))
