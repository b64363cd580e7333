"""Job files: reading one, its overrides, its options by the constructors' signatures, running it.

Public: the options of a class as jobs know them, and the JSON schema of job files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.jobs.options import Option, Schema, schema_of
    from hatbus.jobs.schema import argument_docs, job_schema

__all__ = ["Option", "Schema", "argument_docs", "job_schema", "schema_of"]

__getattr__ = lazily(
    __name__,
    Option="options",
    Schema="options",
    schema_of="options",
    argument_docs="schema",
    job_schema="schema",
)
