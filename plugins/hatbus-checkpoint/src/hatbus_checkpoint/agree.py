"""What rank 0 does for all: its result, or its failure, reaches every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from torch import distributed

from hatbus.errors import PeerError

if TYPE_CHECKING:
    from hatbus.loop import Context

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
