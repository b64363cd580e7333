"""The tables of options in the pages of the plugins, made of their constructors.

A page says where: ``docs/refresh.py`` writes everything between ``<!-- options of NAME -->`` and
``<!-- end of options -->``.
"""

from __future__ import annotations

import ast
import inspect
import re

from hatbus import discovery
from hatbus.discovery import FIRST_PARTY, ClassSource, Parameter
from hatbus.jobs import argument_docs, schema_of

_SHORT = 20
_WORDS = {
    "Path": "path",
    **dict.fromkeys(("Sequence", "Collection", "list", "tuple"), "list"),
    **dict.fromkeys(("Mapping", "dict"), "table"),
}
_INDEX = re.compile(r"(<!-- table of plugins -->\n).*?(<!-- end of table -->)", re.DOTALL)
_BLOCK = re.compile(r"(<!-- options of (\w+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """A page with its tables as they are now."""
    page = _INDEX.sub(lambda found: f"{found[1]}\n{plugins_index()}\n\n{found[2]}", page)
    return _BLOCK.sub(lambda found: f"{found[1]}\n{options_of(found[2])}\n\n{found[3]}", page)


def options_of(name: str) -> str:
    """What a plugin is, where it stands, and its options."""
    found = discovery.lookup(name)
    reading, cls = found.describe(), found.load()
    if reading is None:
        raise RuntimeError(f"the source of {found.value} cannot be read")
    docs = argument_docs(inspect.getdoc(cls) or "")
    rows = [_row(one, docs) for one in reading.parameters if not one.name.startswith("**")]
    if schema_of(cls).takes_more:
        rows += [_row(one, docs) for one in reading.parameters if one.name.startswith("**")]
    if not rows:
        return f"{_place(reading, cls)}; no options."
    head = ["| option | accepted | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"{_place(reading, cls)}.", "", *head, *rows])


def plugins_index() -> str:
    """The table of all plugins."""
    rows = []
    for name, own in FIRST_PARTY.items():
        anchor = f"{own.distribution}.md#{_anchor(own.distribution, name)}"
        summary = _markdown(discovery.lookup(name).summary()).rstrip(".")
        rows.append(f"| [`{name}`]({anchor}) | {summary} | `{own.class_name}` |")
    return "\n".join(["| plugin | what it does | class |", "|---|---|---|", *rows])


def _anchor(distribution: str, name: str) -> str:
    """Where a page has a plugin's heading; ``jsonl_log and csv_log`` is one for two."""
    return "jsonl_log-and-csv_log" if name in ("jsonl_log", "csv_log") else name


def _place(reading: ClassSource, cls: type) -> str:
    """Class, place and events in one line."""
    declared = {"stage": "monitor", **reading.declared}
    parts = [f"`{cls.__module__}.{cls.__name__}`"]
    for key, value in declared.items():
        if isinstance(value, bool):
            parts += [f"`{key}`"] if value else []
            continue
        words = [value] if isinstance(value, str) else value
        parts.append(f"{key} {', '.join(f'`{word}`' for word in words)}")
    return "; ".join(parts) + f"; events {', '.join(f'`{event}`' for event in reading.events)}"


def _row(option: Parameter, docs: dict[str, str]) -> str:
    """One line of a table."""
    name = option.name.strip("*")
    meaning = _cell(_markdown(docs.get(name, "")))
    if option.name.startswith("**"):
        return f"| others | | | {meaning} |"
    default = "required" if option.default is None else _code(option.default)
    return f"| `{name}` | {_accepted(option.annotation)} | {default} | {meaning} |"


def _accepted(annotation: str) -> str:
    """A type in the words of a job; None, which a job cannot say, is left to the default."""
    if not annotation:
        return ""
    kinds = (_kind(one) for one in _alternatives(ast.parse(annotation, mode="eval").body))
    return ", ".join(dict.fromkeys(filter(None, kinds)))


def _alternatives(node: ast.expr) -> list[ast.expr]:
    """The types of a union."""
    if isinstance(node, ast.BinOp):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    return [node]


def _kind(node: ast.expr) -> str:
    """One type: itself if it is short, the words of a ``Literal``, else what it is in a job."""
    text = ast.unparse(node)
    outer, _, inner = text.partition("[")
    if text == "None":
        return ""
    if outer == "Literal":
        return ", ".join(_code(word) for word in inner.rstrip("]").split(", ") if word != "None")
    if text in ("int", "float", "bool", "str") or (
        inner and len(text) <= _SHORT and "Any" not in text
    ):
        return _code(text)
    return _WORDS.get(outer.rpartition(".")[2], "object")


def _code(source: str) -> str:
    return f"`{_cell(source)}`".replace("'", '"')


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
