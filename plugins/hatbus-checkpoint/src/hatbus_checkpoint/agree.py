"""What rank 0 does for all: its result, or its failure, reaches every rank."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from torch import distributed

from hatbus.errors import JobError, PeerError
from hatbus.option_values import short

if TYPE_CHECKING:
    from pathlib import Path

    from hatbus.loop import Context

_PATIENCE_S: Final = 5.0

_Result = TypeVar("_Result")


def first_of_all(ctx: Context, work: Callable[[], _Result]) -> _Result:
    """Does the work on rank 0 and gives every rank its result; a collective.

    Raises:
        PeerError: on the other ranks, when rank 0 failed; there the error itself is raised.
    """
    if ctx.world_size == 1:
        return work()
    box: list[_Result | str | None] = [None, None]
    error: BaseException | None = None
    if ctx.rank == 0:
        try:
            box[0] = work()
        except Exception as failed:  # noqa: BLE001 - it is raised again, once the others know
            error, box[1] = failed, f"{type(failed).__name__}: {failed}"
    distributed.broadcast_object_list(box)
    if error is not None:
        raise error
    if box[1] is not None:
        raise PeerError(f"rank 0 failed: {box[1]}")
    return box[0]  # type: ignore[return-value]  # rank 0 put it there


def check_is_shared(ctx: Context, folder: Path) -> None:
    """Refuses a folder that is not the same on all ranks; a collective.

    Raises:
        JobError: a rank does not see what rank 0 writes there; on all ranks.
    """
    if ctx.world_size == 1:
        return
    mark = folder / first_of_all(ctx, partial(_marked, folder))
    sees = _comes(mark)
    blind = ctx.control.anywhere([r == ctx.rank and not sees for r in range(ctx.world_size)])
    if ctx.rank == 0:
        mark.unlink(missing_ok=True)
    if any(blind):
        raise JobError(
            f"rank {blind.index(True)} does not see what rank 0 writes into "
            f"{str(short(folder))!r}; checkpoints need a folder on a disk that all machines share"
        )


def _marked(folder: Path) -> str:
    """Writes a file that no other run has; its name."""
    name = f".tmp-shared-{uuid.uuid4().hex}"
    (folder / name).touch()
    return name


def _comes(file: Path) -> bool:
    """Whether a file is there, or comes soon: a network's folder may be a little behind."""
    until = time.monotonic() + _PATIENCE_S
    while not file.exists():
        if time.monotonic() > until:
            return False
        if file.parent.is_dir():
            list(file.parent.iterdir())  # makes some of them look anew
        time.sleep(0.1)
    return True
