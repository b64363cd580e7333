"""Finding installed plugins and reading their source, without importing any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.discovery.class_source import Parameter, Reading
    from hatbus.discovery.entry_points import (
        ALLOW,
        GROUP,
        SOURCE,
        Found,
        conflict_of,
        forget,
        hint,
        how_to_install,
        installed,
        is_allowed,
        lookup,
    )
    from hatbus.discovery.first_party import FIRST_PARTY

__all__ = [
    "ALLOW",
    "FIRST_PARTY",
    "GROUP",
    "SOURCE",
    "Found",
    "Parameter",
    "Reading",
    "conflict_of",
    "forget",
    "hint",
    "how_to_install",
    "installed",
    "is_allowed",
    "lookup",
]

__getattr__ = lazily(
    __name__,
    ALLOW="entry_points",
    conflict_of="entry_points",
    FIRST_PARTY="first_party",
    forget="entry_points",
    Found="entry_points",
    GROUP="entry_points",
    hint="entry_points",
    how_to_install="entry_points",
    installed="entry_points",
    is_allowed="entry_points",
    lookup="entry_points",
    Parameter="class_source",
    Reading="class_source",
    SOURCE="entry_points",
)
