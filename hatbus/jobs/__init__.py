"""Job files: options, overrides, references, their schema, and running them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.jobs.options import schema_of
    from hatbus.jobs.schema import argument_docs

__all__ = ["argument_docs", "schema_of"]

__getattr__ = lazily(__name__, argument_docs="schema", schema_of="options")
