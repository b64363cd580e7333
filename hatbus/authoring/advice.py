"""What would make a plugin better, though it works without: the advice of ``plugins check``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from hatbus.authoring.import_time import early_torch
from hatbus.authoring.private_imports import private_imports
from hatbus.discovery.before_after import strangers
from hatbus.events.payload import DEPRECATED
from hatbus.jobs.job import PLUGIN_KEYS
from hatbus.jobs.schema import argument_docs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hatbus.authoring.checking import Offer
    from hatbus.discovery.class_source import ClassSource, Sources

_METADATA: Final = {
    "description": "Summary",
    "readme": "Description-Content-Type",
    "license": "License-Expression",
    "requires-python": "Requires-Python",
}
"""Key of a pyproject.toml to the field of a wheel's metadata that it becomes."""


def advice_on(offer: Offer, sources: Sources, beside: Iterable[str] = ()) -> list[str]:
    """Advice on the class of one entry point; none if it cannot be read.

    Args:
        offer: the entry point.
        sources: to read it from.
        beside: names of plugins that come with it.
    """
    module, _, attr = offer.value.partition(":")
    reading = sources.read(module.strip(), attr.partition("[")[0].strip())
    if reading is None:
        return []
    early = early_torch(sources, module.strip())
    order = strangers(reading.declared, beside)
    private = private_imports(sources, module.strip())
    return [*_on_class(reading), *order, *([early] if early else []), *private]


def on_project(project: dict[str, Any]) -> list[str]:
    """Advice on the ``[project]`` table of a pyproject.toml."""
    said = {*project, *project.get("dynamic", ())}
    return _lacking([key for key in _METADATA if key not in said])


def on_metadata(metadata: Any) -> list[str]:
    """Advice on an installed distribution's metadata (an ``importlib.metadata`` message)."""
    lacking = [key for key, field in _METADATA.items() if field not in metadata]
    if "License" in metadata:  # as older build backends write it
        lacking = [key for key in lacking if key != "license"]
    return _lacking(lacking)


def _lacking(keys: list[str]) -> list[str]:
    if not keys:
        return []
    return [f"its metadata has no {', '.join(keys)}; whoever finds it on an index looks for them"]


def _on_class(reading: ClassSource) -> Iterator[str]:
    if not reading.is_declared:
        yield "declares no place in the order; say @plugin(stage='monitor'), or another stage"
    if not reading.doc:
        yield "has no docstring, whose first line is what `hatbus plugins` shows"
    described = argument_docs(inspect.cleandoc(reading.doc))
    for name, annotation, _ in reading.parameters:
        if not annotation:
            yield f"option {name!r} has no annotation, by which a job's values are checked"
        if name in PLUGIN_KEYS:
            yield f"option {name!r} cannot be given in a job, where that key is the bus's own"
        if reading.doc and name.strip("*") not in described:
            yield f"option {name!r} is not described under `Args:`, where editors look"
    for method in (one for one in reading.methods.values() if one.is_marked):
        for argument in (a for a in method.arguments if a in DEPRECATED):
            since, use, until = DEPRECATED[argument]
            yield (
                f"{reading.file.name} line {method.line}: {method.name} wants {argument!r}, which "
                f"is deprecated since hatbus {since} and goes in {until}; use {use}"
            )
