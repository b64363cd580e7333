"""What a pair is: a part of another library in a run of hatbus, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = (
    "Optimizers",
    "Schedules",
    "Loaders",
    "Batches",
    "Metrics",
    "Models",
    "Readers and formats",
)
RIGHT, LIMITED, REFUSED = "right", "right, with a limit", "refused"


@dataclasses.dataclass(frozen=True)
class Pair:
    """One row of the table.

    Attributes:
        kind: one of ``KINDS``.
        library: the distribution, as pip knows it.
        name: what of it, as its users call it.
        parts: gives the ``Trainer``'s arguments, for a run in this folder; it is called in a
            process of the run's own. What it leaves out is as in ``small.usual_parts``.
        note: how it is used, what the limit is, or what to use in its place; one line.
        limit: a pattern of what hatbus says of the library's limit; None: there is none. Nothing
            that is said, and a limit all the same: "".
        differs: whether the limit makes the resumed run another one; None: now and then.
        refused: a pattern of the error that ends the run; "" where it is not refused.
        after: updates that a refused run has made.
        saved_every: steps between two saves; the kill comes in the tenth step, the fourth of the
            second of three epochs.
        prepare: writes what all runs read, into the pair's folder.
        looks: what else of the finished run is compared, as data for JSON.
    """

    kind: str
    library: str
    name: str
    parts: Callable[[Path], dict[str, Any]]
    note: str = ""
    limit: str | None = None
    differs: bool | None = True
    refused: str = ""
    after: int = 0
    saved_every: int = 4
    prepare: Callable[[Path], None] | None = None
    looks: Callable[[Any, Path], Any] | None = None

    @property
    def verdict(self) -> str:
        """What the table says."""
        if self.refused:
            return REFUSED
        return RIGHT if self.limit is None else LIMITED

    @property
    def key(self) -> str:
        """A name that no other pair has."""
        return f"{self.kind}/{self.library}/{self.name}"
