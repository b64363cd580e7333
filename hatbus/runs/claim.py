"""One folder for all processes of a run: the first finds it and tells the others."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError
from hatbus.parallel.processes import rank_and_world, told_by_first
from hatbus.runs.folders import RunFolder, claim

if TYPE_CHECKING:
    from hatbus.runs.folders import Wanted

_claims: Final = count()


def claim_for_all(wanted: Wanted) -> RunFolder:
    """The folder of a run that begins; the same on every rank, and held by the first.

    Raises:
        HatbusError: as ``claim``, on every rank.
    """
    rank, world = rank_and_world()
    if world == 1:
        return claim(wanted)
    folder, failed, told = None, None, {}
    if rank == 0:
        try:
            folder = claim(wanted)
            told = {"name": folder.path.name}
        except Exception as error:  # noqa: BLE001 - raised below, when the others know
            failed, told = error, {"error": str(error)}
    heard: dict[str, Any] = json.loads(told_by_first(f"folder {next(_claims)}", json.dumps(told)))
    if failed is not None:
        raise failed
    if folder is None and "error" in heard:
        raise JobError(heard["error"])
    # each in its own place: another machine may have the same folder under another path
    return folder or RunFolder(wanted.folder or wanted.place / heard["name"], wanted)
