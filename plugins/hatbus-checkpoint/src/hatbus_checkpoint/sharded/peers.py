"""What the processes of a run say to each other in a save, on a group of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import distributed

from hatbus.errors import PeerError
from hatbus.parallel import host_group

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatbus.loop import Context

_Result = TypeVar("_Result")


@dataclass
class Done(Generic[_Result]):
    """What came of a piece of work: its result, or its error."""

    result: _Result | None = None
    error: Exception | None = None

    @property
    def fault(self) -> str:
        """The error in words; empty where there is none."""
        return f"{type(self.error).__name__}: {self.error}" if self.error else ""


def done(work: Callable[[], _Result]) -> Done[_Result]:
    """Does the work; an error is kept, so that the others need not wait for nothing."""
    try:
        return Done(work())
    except Exception as error:  # noqa: BLE001 - raised when the others know
        return Done(error=error)


class Peers:
    """All processes of a run; what they exchange is small, and nobody but the first gets all of it.

    Args:
        ctx: the run; every process makes this at the same place.
    """

    def __init__(self, ctx: Context) -> None:
        self.rank, self.world = ctx.rank, ctx.world_size
        self._group = host_group(ctx)

    def from_first(self, work: Callable[[], _Result]) -> _Result:
        """Does the work on the first process and gives every process the result.

        Raises:
            PeerError: on the others, when it failed; on the first the error itself is raised.
        """
        if self.world == 1:
            return work()
        mine: Done[_Result] = done(work) if self.rank == 0 else Done()
        result, fault = self._sent((mine.result, mine.fault))
        if mine.error is not None:
            raise mine.error
        if fault:
            raise PeerError(f"rank 0 failed: {fault}")
        return result  # type: ignore[no-any-return]

    def to_first(self, mine: Any) -> list[Any]:
        """What every process has, by rank, on the first one; empty on the others."""
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        distributed.gather_object(mine, found if self.rank == 0 else None, 0, group=self._group)
        return found if self.rank == 0 else []

    def to_all(self, mine: str) -> list[str]:
        """A short text of every process, by rank, on all."""
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, mine, group=self._group)
        return found

    def _sent(self, value: Any) -> Any:
        box = [value]
        distributed.broadcast_object_list(box, 0, group=self._group)
        return box[0]

    def send(self, value: Any) -> Any:
        """The first process's value, on all."""
        return value if self.world == 1 else self._sent(value)
