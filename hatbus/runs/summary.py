"""``run.json`` in a run's folder: what ``hatbus runs`` lists of it, in one small file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUMMARY_FILE: Final = "run.json"
LOCK_FILE: Final = ".lock"
RUNNING: Final = "running"
FINISHED: Final = "finished"
STOPPED: Final = "stopped"
FAILED: Final = "failed"
STATES: Final = (RUNNING, FINISHED, STOPPED, FAILED)


class Summary:
    """What is known of a run. No dataclass: importing those takes longer than reading 500 runs.

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

    def __init__(
        self,
        job: str = "",
        changes: Sequence[str] = (),
        name: str = "",
        started: float = 0.0,
        updated: float = 0.0,
        state: str = RUNNING,
        reason: str = "",
        epochs: int = 0,
        steps: int = 0,
        metrics: dict[str, dict[str, float]] | None = None,
        judged: dict[str, str] | None = None,
        process: dict[str, Any] | None = None,
    ) -> None:
        self.job, self.changes, self.name = job, [*changes], name
        self.started, self.updated = started, updated
        self.state, self.reason = state, reason
        self.epochs, self.steps = epochs, steps
        self.metrics: dict[str, dict[str, float]] = {} if metrics is None else metrics
        self.judged: dict[str, str] = {} if judged is None else judged
        self.process: dict[str, Any] = {} if process is None else process

    def write(self, folder: Path) -> None:
        """Writes it into a run's folder, all or nothing.

        Raises:
            OSError: it cannot be written.
        """
        partial = folder / f".{SUMMARY_FILE}.{os.getpid()}"
        partial.write_text(json.dumps(vars(self)) + "\n", "utf-8")
        partial.replace(folder / SUMMARY_FILE)


_KNOWN: Final = frozenset(vars(Summary()))


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
