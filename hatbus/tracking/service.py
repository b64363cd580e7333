"""What a tracker delivers, and the service that takes it."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hatbus.errors import JobError


@dataclass(frozen=True)
class Described:
    """What a run is.

    Attributes:
        id: 16 letters and digits; the same each time that the run goes on, in any process.
        name: for people: the run's folder.
        config: nested tables of plain values: the job, the optimizer's options, the seed.
        plan: what ``hatbus explain`` shows, as text; empty where it is not wanted.
        folder: of the tracker's own files.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    plan: str
    folder: Path


@dataclass(frozen=True)
class Row:
    """Everything that was published in one step.

    Attributes:
        step: 0-based ``global_step_id`` of the run.
        epoch: 0-based.
        time: when it was published first, in seconds since 1970.
        scalars: name to number; NaN and infinities among them.
        texts: name to text.
        images: name to a PNG file.
        histograms: name to counts (bins,) and edges (bins + 1,).
        checkpoints: folders of checkpoints that were made in it, and what they are for:
            ``"all"``, ``"last"`` or ``"best"``.
    """

    step: int
    epoch: int
    time: float
    scalars: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)
    histograms: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    checkpoints: list[Path] = field(default_factory=list)


class Service(ABC):
    """A run at a service, through the vendor's own client.

    All methods are called from one thread, which is not the training's, one after the other. What
    they raise is a failure of the service: it is warned of once, and tried again later.
    """

    is_ordered: bool = False
    """Whether it takes a step once only, and no step before one that it holds."""

    @abstractmethod
    def open(self, run: Described) -> int | None:
        """Finds the run of this id, or makes it.

        Returns:
            The last step that the service holds, -1 for none: later ones are delivered. None where
            the service takes what it holds a second time and keeps it once: then everything is
            delivered again of which nobody knows.
        """

    @abstractmethod
    def send(self, rows: Sequence[Row]) -> None:
        """Delivers rows, steps ascending; an image or checkpoint whose file is gone is left out."""

    @abstractmethod
    def close(self, how: str, seconds: float) -> None:
        """Ends the run for now; it may be opened again.

        Args:
            how: ``"finished"``, ``"stopped"`` or ``"failed"``.
            seconds: how long it may take.
        """

    def where(self) -> str:
        """Where people look at the run, in words; empty if it cannot be said."""
        return ""


def client_module(name: str, distribution: str) -> Any:
    """The vendor's package, imported now.

    Raises:
        JobError: it is not installed; with the command that does it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise JobError(
            f"{distribution} needs the package {name!r}, which is not installed; python -m pip "
            f"install {distribution} brings it"
        ) from error
