"""Finding installed plugins, and reading their source, without importing any of them.

Public: what is installed, one plugin by its name, and what its source says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.discovery.allow_list import ALLOW
    from hatbus.discovery.class_source import ClassSource, Method, Parameter
    from hatbus.discovery.configs import Builder, build, is_config
    from hatbus.discovery.entry_points import GROUP, Found, forget, installed, lookup
    from hatbus.discovery.first_party import FIRST_PARTY
    from hatbus.discovery.listed_commands import COMMAND_GROUP

__all__ = [
    "ALLOW",
    "COMMAND_GROUP",
    "FIRST_PARTY",
    "GROUP",
    "Builder",
    "ClassSource",
    "Found",
    "Method",
    "Parameter",
    "build",
    "forget",
    "installed",
    "is_config",
    "lookup",
]

__getattr__ = lazily(
    __name__,
    ALLOW="allow_list",
    Method="class_source",
    Parameter="class_source",
    ClassSource="class_source",
    Builder="configs",
    build="configs",
    is_config="configs",
    Found="entry_points",
    GROUP="entry_points",
    forget="entry_points",
    installed="entry_points",
    lookup="entry_points",
    FIRST_PARTY="first_party",
    COMMAND_GROUP="listed_commands",
)
