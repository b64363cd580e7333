"""The JSON schema of job files, made of the constructors of the installed plugins.

It says what ``hatbus.jobs.options`` checks: the names, types and defaults of every option, and
that a text or a table may stand for an object (``"@name"``, ``"file.py:name"``,
``{ call = ... }``).
Source: https://json-schema.org/draft/2020-12.
"""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path, PurePath
from typing import Any, Final, Literal, Union, get_args, get_origin

from hatbus import discovery
from hatbus.errors import PluginError
from hatbus.events.declare import RANKS, STAGES
from hatbus.jobs.job import PLUGIN_KEYS, Plugin, Run
from hatbus.jobs.options import Option, Schema, schema_of
from hatbus.jobs.type_hints import INFINITE, NONE, SEQUENCES, SETS, TABLES, is_enum, plain

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
Json = dict[str, Any]

_REFERENCE: Final = {"$ref": "#/$defs/object"}
_NAMES: Final = {"type": ["string", "array"], "items": {"type": "string"}}
_OBJECT: Final = {
    "description": "an object: '@name' of what the entry function returned, 'file.py:name', "
    "'package.module:name', or { call = 'file.py:name' } with arguments",
    "anyOf": [
        {"type": "string", "pattern": "^@|:"},
        {"type": "object", "required": ["call"], "properties": {"call": {"type": "string"}}},
    ],
}
_SIMPLE: Final[dict[Any, str]] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    Path: "string",
    PurePath: "string",
}


def job_schema() -> Json:
    """The schema of a job file."""
    plugins = {found.name: found for found in discovery.installed()}
    known = {name: plugin_schema(found) for name, found in plugins.items()}
    chosen = [
        {"if": {"properties": {"use": {"const": name}}}, "then": {"$ref": f"#/$defs/plugin.{name}"}}
        for name in known
    ]
    use = {"anyOf": [{"enum": [*known]}, {"type": "string", "pattern": ":"}]}
    by_use = {"properties": {"use": use}, "required": ["use"], "allOf": chosen}
    return {
        "$schema": DRAFT,
        "title": "a hatbus job",
        "type": "object",
        "additionalProperties": False,
        "required": ["run"],
        "properties": {
            "run": run_schema(),
            "plugins": {
                "type": "object",
                "description": "the plugins of the run, by instance name",
                "properties": {name: _named(name) for name in known},
                "additionalProperties": _unless_off({"$ref": "#/$defs/by_use"}),
            },
        },
        "$defs": {
            "object": _OBJECT,
            "by_use": by_use,
            **{f"plugin.{name}": schema for name, schema in known.items()},
        },
    }


def run_schema() -> Json:
    """The ``[run]`` table."""
    found = table_schema(schema_of(Run), argument_docs(inspect.getdoc(Run) or ""), objects=False)
    for name in ("num_epochs", "num_steps", "accumulate"):
        found["properties"][name]["minimum"] = 1
    found["properties"]["log_every"]["minimum"] = 0
    found["properties"]["args"]["type"] = "object"
    plans = [{"required": ["num_epochs"]}, {"required": ["num_steps"]}]
    return {**found, "description": "what is trained, and for how long", "oneOf": plans}


def plugin_schema(found: discovery.Found) -> Json:
    """The table of one plugin; one that cannot be loaded takes any option."""
    said = argument_docs(inspect.getdoc(Plugin) or "")
    own = {
        name: {**_filter(name), "description": said[name].replace("``", "`")}
        for name in PLUGIN_KEYS
    }
    try:
        cls = found.load()
    except PluginError as error:
        return {"type": "object", "description": str(error), "properties": own}
    schema = schema_of(cls)
    doc = inspect.getdoc(cls) or ""
    table = table_schema(schema, argument_docs(doc))
    table["properties"] |= own
    return {"description": doc.partition("\n")[0].replace("``", "`"), **table}


def table_schema(schema: Schema, docs: dict[str, str], *, objects: bool = True) -> Json:
    """The table of a constructor's options.

    Args:
        schema: its signature.
        docs: option to its line of documentation.
        objects: whether a text may name an object.
    """
    options = schema.options.values()
    found: Json = {
        "type": "object",
        "properties": {o.name: option_schema(o, docs, objects=objects) for o in options},
        "additionalProperties": schema.takes_more,
    }
    # a save_dir that is not given is in the run's folder (hatbus.jobs.jobrun)
    required = [o.name for o in options if o.is_required and o.name != "save_dir"]
    return {**found, "required": required} if required else found


def option_schema(option: Option, docs: dict[str, str], *, objects: bool = True) -> Json:
    """One option."""
    found = hint_schema(option.hint)
    if objects and found and found != _REFERENCE:
        # "@name" may stand anywhere; of a text it is one case
        found = found if found == {"type": "string"} else {"anyOf": [found, _REFERENCE]}
    found = dict(found)
    if option.name in docs:
        found["description"] = docs[option.name].replace("``", "`")
    if isinstance(option.default, (bool, int, float, str)):
        found["default"] = option.default
    return found


def hint_schema(hint: Any) -> Json:
    """What a type hint accepts; as ``hatbus.jobs.type_hints.convert`` decides it."""
    hint = plain(hint)
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is Any or origin is object:
        return {}
    if origin in (Union, types.UnionType):
        found = [hint_schema(one) for one in inner if one is not type(None)]
        return _any_of([*found, {"const": NONE}] if type(None) in inner else found)
    if origin is Literal:
        return {"enum": [word for word in inner if word is not None]}
    if origin is float:
        return {"anyOf": [{"type": "number"}, {"enum": list(INFINITE)}]}
    if is_enum(origin):
        return {"enum": list(origin.__members__)}
    return {"type": _SIMPLE[origin]} if origin in _SIMPLE else _collection(origin, inner)


def _collection(origin: Any, inner: tuple[Any, ...]) -> Json:
    """A table, a list, or else an object of some class."""
    if origin in TABLES:
        values = _item(inner[1]) if len(inner) > 1 else {}
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    if origin in (*SEQUENCES, *SETS):
        return _list(origin, inner)
    return _REFERENCE


def argument_docs(doc: str) -> dict[str, str]:
    """The lines of a google docstring's ``Args:`` section, by argument."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^    ([\w, *]+):[ ]?(.*(?:\n      .*)*)", section[1], re.MULTILINE)
    return {
        name.strip(" *"): " ".join(text.split())
        for names, text in entries
        for name in names.split(",")
    }


def _any_of(options: list[Json]) -> Json:
    """One of several schemas; anything, if one of them is anything."""
    distinct = [one for i, one in enumerate(options) if one not in options[:i]]
    if not all(distinct):
        return {}
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _item(hint: Any) -> Json:
    """What a list or table holds; an object may be named in each place."""
    found = hint_schema(hint)
    return _any_of([found, _REFERENCE]) if found else {}


def _list(origin: Any, inner: tuple[Any, ...]) -> Json:
    found: Json = {"type": "array"}
    if origin is tuple and len(inner) > 1 and inner[-1] is not Ellipsis:
        items = [_item(one) for one in inner]
        return {**found, "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    items_schema = _item(inner[0]) if inner else {}
    return {**found, "items": items_schema} if items_schema else found


def _named(name: str) -> Json:
    """A table that has a plugin's name: that plugin, unless ``use`` names another."""
    here = {"$ref": f"#/$defs/plugin.{name}"}
    return {"if": {"required": ["use"]}, "then": {"$ref": "#/$defs/by_use"}, "else": here}


def _unless_off(schema: Json) -> Json:
    """A table that is switched off may name what is not installed."""
    off = {"properties": {"enabled": {"const": False}}, "required": ["enabled"]}
    return {"if": off, "then": {"type": "object"}, "else": schema}


def _filter(name: str) -> Json:
    """A key of a plugin's table that belongs to the bus."""
    if name in ("before", "after", "tasks"):
        return _NAMES
    if name in ("stage", "ranks"):
        return {"enum": list(STAGES if name == "stage" else RANKS)}
    return hint_schema(schema_of(Plugin).options[name].hint)
