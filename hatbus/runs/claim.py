"""One folder for all processes of a run: the first finds it and tells the others."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError
from hatbus.parallel.launch import may_restart, rank_and_world, restarts
from hatbus.parallel.meeting import board_of_all, said_by_first
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
    number = next(_claims)
    if world == 1 and not may_restart():
        return claim(wanted)
    folder, failed, told = None, None, {}
    if rank == 0:
        try:
            folder = claim(as_before_restart(wanted, number))
            board_of_all().lasting.set(f"folder {number}", str(folder.path))
            told = {"name": folder.path.name}
        except Exception as error:  # noqa: BLE001 - raised below, when the others know
            failed, told = error, {"error": str(error)}
    heard: dict[str, Any] = json.loads(said_by_first(json.dumps(told)))
    if failed is not None:
        raise failed
    if folder is None and "error" in heard:
        raise JobError(heard["error"])
    # each in its own place: another machine may have the same folder under another path
    return folder or RunFolder(wanted.folder or wanted.place / heard["name"], wanted)


def as_before_restart(wanted: Wanted, number: int) -> Wanted:
    """What to claim: after a restart by torchrun the folder that the run had before it.

    Args:
        wanted: as the job says.
        number: how many claims this process made before.
    """
    lasting, key = board_of_all().lasting, f"folder {number}"
    if not restarts() or not lasting.check([key]):
        return wanted
    before = Path(lasting.get(key).decode())
    return replace(wanted, folder=before) if before.is_dir() else wanted
