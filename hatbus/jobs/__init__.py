"""Job files: reading one, its overrides, its options by the constructors' signatures, running it.

Public: the options of a class as jobs know them, the JSON schema of job files, and what a command
needs that does something with a job: ``read_job``, then ``prepare``, whose result builds a trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.jobs.command_line import change_options, show_log
    from hatbus.jobs.job import Job, read_job
    from hatbus.jobs.jobrun import Prepared, prepare, run
    from hatbus.jobs.options import Option, Schema, schema_of
    from hatbus.jobs.results import show_metrics
    from hatbus.jobs.schema import argument_docs, job_schema

__all__ = [
    "Job",
    "Option",
    "Prepared",
    "Schema",
    "argument_docs",
    "change_options",
    "job_schema",
    "prepare",
    "read_job",
    "run",
    "schema_of",
    "show_log",
    "show_metrics",
]

__getattr__ = lazily(
    __name__,
    change_options="command_line",
    show_log="command_line",
    Job="job",
    read_job="job",
    Prepared="jobrun",
    prepare="jobrun",
    run="jobrun",
    Option="options",
    Schema="options",
    schema_of="options",
    show_metrics="results",
    argument_docs="schema",
    job_schema="schema",
)
