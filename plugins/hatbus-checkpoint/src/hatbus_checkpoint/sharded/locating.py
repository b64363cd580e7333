"""The checkpoint to resume from, found by the first process and verified by all.

Every process reads its share of the files, so a damaged one is known to all, and all go on with
the same. The first leads: the others do what it says until it has an answer.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatbus.errors import CheckpointError, PeerError
from hatbus_checkpoint import finite_file, manifest
from hatbus_checkpoint.locate import locate
from hatbus_checkpoint.sharded.peers import done

if TYPE_CHECKING:
    from hatbus_checkpoint.folder import CheckpointFolder, Entry
    from hatbus_checkpoint.sharded.peers import Peers

_VERIFY, _FOUND = "verify", "found"


def locate_together(wanted: str, own: CheckpointFolder, peers: Peers) -> Entry | None:
    """As ``locate``, by all processes of a run.

    Raises:
        CheckpointError: on the first process: there is nothing that can be used.
        PeerError: on the others, for that.
    """
    if peers.world == 1:
        return locate(wanted, own)
    if peers.rank == 0:
        found = done(partial(locate, wanted, own, partial(_led, peers)))
        peers.send((_FOUND, found.result, found.fault))
        if found.error is not None:
            raise found.error
        return found.result
    while True:
        order, value, fault = peers.send(None)
        if order == _VERIFY:
            _verified(Path(value), peers)
        elif fault:
            raise PeerError(f"rank 0 failed: {fault}")
        else:
            return value  # type: ignore[no-any-return]  # rank 0 put it there


def _led(peers: Peers, path: Path) -> dict[str, Any]:
    """Verifies a checkpoint with the help of the others.

    Raises:
        CheckpointError: the first thing that is wrong.
    """
    found = manifest.read(path)
    peers.send((_VERIFY, str(path), ""))
    fault = _verified(path, peers)
    if fault:
        raise CheckpointError(fault)
    finite_file.check(path, found)
    return found


def _verified(path: Path, peers: Peers) -> str:
    """Reads this process's share of the files; the first fault on any, or an empty text."""
    mine = done(partial(manifest.verify, path, slice(peers.rank, None, peers.world)))
    known = isinstance(mine.error, CheckpointError)
    faults = peers.to_all(str(mine.error) if known else mine.fault)
    return next(filter(None, faults), "")
