"""Delivers what a run has left, when its process is long gone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hatbus import discovery
from hatbus.errors import JobError
from hatbus.tracking.delivery import Delivery
from hatbus.tracking.journal import POINTS, Journal
from hatbus.tracking.tracker import RUN_FILE, Tracker, described_from

if TYPE_CHECKING:
    from collections.abc import Iterable


class Delivered(NamedTuple):
    """What became of one tracker's points.

    Attributes:
        name: of the tracker's folder, which is its instance's.
        points: that were to be delivered.
        left: those that could not be.
    """

    name: str
    points: int
    left: int


def trackers_in(run: Path) -> list[Path]:
    """The folders of trackers in a run's folder."""
    return sorted(
        path.parent for path in run.glob(f"*/{RUN_FILE}") if (path.parent / POINTS).exists()
    )


def deliver_rest(folders: Iterable[Path], how: str, seconds: float) -> list[Delivered]:
    """Delivers what the folders of trackers hold and their services do not.

    Args:
        folders: of trackers.
        how: the run ended: ``"finished"``, ``"stopped"`` or ``"failed"``.
        seconds: that one of them may take.

    Raises:
        HatbusError: a tracker is not installed, its client is missing, or nobody is logged in.
    """
    return [_deliver(folder, how, seconds) for folder in folders]


def _deliver(folder: Path, how: str, seconds: float) -> Delivered:
    try:
        known = json.loads((folder / RUN_FILE).read_text("utf-8"))
        described = described_from(known, folder)
        name, options = known["plugin"], known["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{str(folder / RUN_FILE)!r} cannot be read: {error}") from error
    cls = discovery.lookup(name).load()
    if not issubclass(cls, Tracker):
        raise JobError(f"plugin {name!r}, which {str(folder)!r} names, is no tracker")
    journal = Journal(folder)
    journal.keep(journal.read())
    left = journal.pieces - journal.done
    delivery = Delivery(folder.name, cls(**options).connect(), journal, described, lambda: math.inf)
    delivery.start(seconds)
    delivery.close(how, seconds)
    return Delivered(folder.name, left, journal.pieces - journal.done)
