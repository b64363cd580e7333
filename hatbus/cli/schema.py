"""``hatbus schema``: the JSON schema of job files, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import SaveError

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--out", metavar="FILE", help="write it into a file")


def run(args: argparse.Namespace) -> int:
    """Imports every installed plugin and prints the schema.

    Raises:
        SaveError: the file cannot be written.
    """
    from hatbus.jobs.schema import job_schema

    text = json.dumps(job_schema(), indent=2, default=str) + "\n"
    if args.out is None:
        print(text, end="")
        return 0
    try:
        Path(args.out).write_text(text, "utf-8")
    except OSError as error:
        raise SaveError(f"cannot write {args.out!r}: {error.strerror}") from error
    print(f"{args.out}: name it in a job's first line: #:schema {args.out}")
    return 0
