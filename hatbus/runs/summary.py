"""``run.json`` in a run's folder: what ``hatbus runs`` lists of it, in one small file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

SUMMARY_FILE: Final = "run.json"
LOCK_FILE: Final = ".lock"
RUNNING: Final = "running"
FINISHED: Final = "finished"
STOPPED: Final = "stopped"
FAILED: Final = "failed"
STATES: Final = (RUNNING, FINISHED, STOPPED, FAILED)


@dataclass
class Summary:
    """What is known of a run.

    Attributes:
        job: the job file, or the script; absolute.
        changes: what the command line said otherwise: ``"-p name"``, ``"-o name.key=value"``; of a
            script its arguments.
        started: Unix seconds.
        updated: Unix seconds, when this was written.
        state: one of ``STATES``.
        reason: why it stopped or failed.
        epochs: that are over.
        steps: optimizer steps in all.
        metrics: of every published number, by name: ``last``, ``min`` and ``max``, as they were at
            the ends of epochs and validations.
        judged: ``"min"`` or ``"max"`` of the names that the run's own plugins judge by.
        process: its pid and host.
    """

    job: str = ""
    changes: list[str] = field(default_factory=list)
    name: str = ""
    started: float = 0.0
    updated: float = 0.0
    state: str = RUNNING
    reason: str = ""
    epochs: int = 0
    steps: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    judged: dict[str, str] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes it into a run's folder, all or nothing.

        Raises:
            OSError: it cannot be written.
        """
        partial = folder / f".{SUMMARY_FILE}.{os.getpid()}"
        partial.write_text(json.dumps(asdict(self)) + "\n", "utf-8")
        partial.replace(folder / SUMMARY_FILE)


_KNOWN: Final = frozenset(f.name for f in fields(Summary))


def read_summary(folder: str | Path) -> Summary | None:
    """The summary in a folder; None where there is none that can be read."""
    try:
        with open(f"{folder}/{SUMMARY_FILE}", "rb") as file:  # noqa: PTH123 - of hundreds, in a list
            read = json.loads(file.read())
    except (OSError, ValueError):
        return None
    if not isinstance(read, dict):
        return None
    return Summary(**{name: value for name, value in read.items() if name in _KNOWN})
