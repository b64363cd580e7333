"""What all processes of a run do together: serve requests, leave out a batch, an update, a save."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import torch
from torch import distributed

from hatbus.batches.finite import FINITE
from hatbus.errors import DataError, JobError, PeerError
from hatbus.events.declare import hookimpl
from hatbus.loop.control import LASTING, SIGNAL, STOP_EPOCH, Control, Request, plain
from hatbus.parallel.sharding import is_sharded

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from hatbus.loop.context import Context

_PLACES: Final = 256
_STEPS: Final = 1 << 15


@dataclass
class Timeouts:
    """How long processes wait for each other, in seconds.

    Attributes:
        start: until the first step is over, in which models are compiled and data is opened.
        later: from then on.
    """

    start: float
    later: float

    def shorten(self, *groups: Any) -> None:
        """The first step is over: from now on the groups wait as long as is usual."""
        for group in groups:
            with_timeout(group, self.later)


def with_timeout(group: Any, seconds: float) -> None:
    """Sets how long collectives of a group wait; None: the default group."""
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)  # noqa: SLF001 - torch has no public name for it


class AgreedDecisions:
    """What one rank decides, all do: leave out a batch, an update or a checkpoint.

    Otherwise gradients would be shared with a rank that has none, or weights drift apart. The ranks
    wait for each other, so it is done only where some plugin of the run decides (``Bus``).
    """

    @hookimpl(wrapper=True, tryfirst=True)
    def skip_batch(self, ctx: Context) -> Generator[None, Any, Any]:
        """The reasons of all ranks."""
        return agreed((yield), ctx)

    @hookimpl(wrapper=True, tryfirst=True)
    def skip_update(self, ctx: Context) -> Generator[None, Any, Any]:
        """The reasons of all ranks."""
        return agreed((yield), ctx)

    @hookimpl(wrapper=True, tryfirst=True)
    def veto_checkpoint(self, ctx: Context) -> Generator[None, Any, Any]:
        """The reasons of all ranks."""
        return agreed((yield), ctx)


class SameTasks:
    """Refuses steps of other tasks on other ranks, where parameters are sharded (FSDP2).

    A shard gets the gradients of all ranks, whichever module they came from: they would be wrong,
    and nothing would say so.
    """

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Compares the step's tasks.

        Raises:
            JobError: they differ.
        """
        control = ctx.control
        if isinstance(control, AgreedControl) and is_sharded(ctx.model):
            tasks = [task for task, _, _ in ctx.batches]
            if not control.is_same(crc32(repr(tasks).encode()) % _STEPS):
                raise JobError(
                    f"rank {ctx.rank} has tasks {tasks} in step {ctx.global_step_id}, and another "
                    "rank others; a sharded model (FSDP2) needs the same on all: let the task "
                    "sampler choose by seed, epoch and step alone, not by rank"
                )
        return (yield)


def host_group(ctx: Context) -> Any:
    """A group of all processes, over the host (gloo), for what a plugin exchanges itself.

    Nothing else uses it, so the plugin may do so in a thread of its own, beside the training. It
    waits as long as the run's other exchanges, and ends with the run.

    Args:
        ctx: the run; every process calls this at the same place, in ``on_loop_begin`` say.

    Returns:
        For torch's collectives, as ``group``; None in a run of one process.
    """
    return ctx.control.new_group() if isinstance(ctx.control, AgreedControl) else None


def agreed(found: list[tuple[str, str]], ctx: Context) -> list[tuple[str, str]]:
    """This rank's reasons, and one in the name of every plugin that has one on another rank.

    What is exchanged has one length on all ranks, also where their plugins are not the same.
    """
    mine = {name for name, _ in found}
    flags = [False] * _PLACES
    for name in mine:
        flags[place_of(name)] = True
    more = {place for place, asked in enumerate(ctx.control.anywhere(flags)) if asked}
    more -= {place_of(name) for name in mine}
    names = {place_of(name): name for name in ctx.bus.members}
    return [*found, *((names.get(place, "a plugin"), "on another rank") for place in sorted(more))]


def place_of(name: str) -> int:
    """Where a plugin's answer stands among the answers; the first place is for bad losses alone."""
    return 0 if name == FINITE else 1 + crc32(name.encode()) % (_PLACES - 1)


class AgreedControl(Control):
    """Requests that every rank knows: what one rank asks for, all do, at the same boundary.

    One small all-reduce per boundary, launched at one and read at the next, so that no rank waits
    for it. A request is therefore served one boundary later than in a single process. Rank 0's
    clock goes with it: plugins with an interval in seconds are due in the same steps everywhere.
    """

    __slots__ = (
        "_counts",
        "_ctx",
        "_granted",
        "_group",
        "_is_starting",
        "_is_timekeeper",
        "_mine",
        "_more",
        "_now",
        "_timeouts",
        "_work",
        "at",
    )
    is_shared = True
    _WISHES = ("validate", "save", "stop epoch", "stop run")

    def __init__(self, ctx: Context, timeouts: Timeouts) -> None:
        super().__init__(ctx.bus.callers)
        self.at = ""
        self._ctx, self._timeouts, self._is_starting = ctx, timeouts, True
        self._more: list[Any] = []
        self._group = self._new_group()
        self._is_timekeeper = distributed.get_rank() == 0
        self._counts = self._message([])
        distributed.all_reduce(self._counts, group=self._group)
        self._now = self._counts[-1].item()
        self._granted: list[Request] = []
        self._mine: list[Request] = []
        self._work: Any = None

    def due(self, at: str = "") -> bool:
        """Whether a request was agreed; every rank calls this at the same boundaries.

        Raises:
            DataError: this rank is at another boundary than the others.
            PeerError: another rank is.
        """
        self.at = at
        self._granted = self._agreed()
        self._ask_all()
        self.at = ""
        if self._is_starting and not at:
            self._shorten_timeouts()
        return bool(self._granted)

    def is_owed(self) -> bool:
        """Whether a request was agreed that was made since; every rank calls this at the end.

        The first time that is a request of the last boundary; then the ranks wait for each other.
        """
        self.at = "at the end of the run"
        self._granted = self._agreed()
        if not self._granted:
            self._ask_all()
            self._granted = self._agreed()
        self._work = None
        return bool(self._granted)

    def now(self) -> float:
        """Rank 0's clock at the last boundary but one."""
        return self._now

    def anywhere(self, flags: list[bool]) -> list[bool]:
        """Which flags are set on any rank; the ranks wait for each other."""
        counts = torch.tensor(flags, dtype=torch.float32)
        distributed.all_reduce(counts, group=self._group)
        return [bool(count) for count in counts.tolist()]

    def is_same(self, number: int) -> bool:
        """Whether a whole number below 2**15 is the same on all ranks; they wait for each other."""
        sums = torch.tensor([number, number * number], dtype=torch.float64)
        distributed.all_reduce(sums, group=self._group)
        return self._all_same(*sums.tolist())

    def new_group(self) -> Any:
        """A further group of all processes, which lasts as long as this."""
        self._more.append(self._new_group())
        return self._more[-1]

    def close(self) -> None:
        """Ends the groups; what was agreed is known by now."""
        for group in (*self._more, self._group):
            if group is not None:
                distributed.destroy_process_group(group)
        self._more.clear()
        self._group = self._work = None

    def _new_group(self) -> Any:
        seconds = self._timeouts.start if self._is_starting else self._timeouts.later
        return distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))

    def state_dict(self) -> dict[str, Any]:
        """What this rank asked for: what all know at this boundary, and what they know later."""
        known = [r for r in (self.epoch_stopped,) if r is not None]
        asked = self._mine if self._work is not None else []
        parts = {"over": known, "asked": asked, "later": self.pending}
        found = {k: plain(r for r in part if r.wish in LASTING) for k, part in parts.items()}
        state: dict[str, Any] = {k: part for k, part in found.items() if part}
        return {**state, "is_asked": self.is_serving} if state else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what was asked for, and asks again; every rank calls this at the same place.

        Saved before the requests of the boundary were agreed, those asked for at the one before are
        granted now, and those of this one are sent; saved after it, they had been.
        """
        read = {k: [Request(*r) for r in state.get(k, ())] for k in ("over", "asked", "later")}
        anew, self.pending = self.pending, []
        over, asked, later = read["over"], read["asked"], read["later"]
        if not self.anywhere([bool(state.get("is_asked"))])[0]:
            over, asked, later = [*over, *asked], later, []
        is_over = self.anywhere([any(r.wish == STOP_EPOCH for r in over)])[0]
        if is_over:
            mine = [r for r in over if r.wish == STOP_EPOCH]
            self.grant(mine[0] if mine else Request(STOP_EPOCH, "another rank", "see its log"))
        self.pending = asked
        self._ask_all()
        self.pending = [*(r for r in over if r.wish != STOP_EPOCH), *later, *anew]

    def _shorten_timeouts(self) -> None:
        """The first step is over: from now on no rank waits longer for another than is usual."""
        self._is_starting = False
        ddp = getattr(self._ctx.wrapped_model, "process_group", None)
        self._timeouts.shorten(None, self._group, *self._more, *(() if ddp is None else (ddp,)))

    def _ask_all(self) -> None:
        """Sends what was asked for here; the answer is there at the next boundary."""
        self._mine, self.pending = self.pending, []
        self._counts = self._message(self._mine)
        self._work = distributed.all_reduce(self._counts, group=self._group, async_op=True)

    def _message(self, requests: list[Request]) -> torch.Tensor:
        """What this rank adds to the sum over all.

        A number per wish; whether a signal asks; a number for the boundary, and its square, which
        together show whether all ranks are at the same; and the time on rank 0.
        """
        wishes = [float(any(r.wish == wish for r in requests)) for wish in self._WISHES]
        position = self._ctx.position
        at = (2 * position.global_step + bool(self.at)) % _STEPS
        clock = time.monotonic() if self._is_timekeeper else 0.0
        by_signal = float(any(r.by == SIGNAL for r in requests))
        return torch.tensor([*wishes, by_signal, at, at * at, clock], dtype=torch.float64)

    def _agreed(self) -> list[Request]:
        if self._work is None:
            return []
        self._work.wait()
        found = []
        *counts, by_signal, at, squared, self._now = self._counts.tolist()
        if not self._all_same(at, squared):
            self._refuse_other_places()
        for wish, asked in zip(self._WISHES, counts, strict=True):
            mine = [r for r in self._mine if r.wish == wish]
            if asked:
                who = SIGNAL if by_signal and wish in ("save", "stop run") else "another rank"
                found.append(mine[0] if mine else Request(wish, who, "see its log"))
        return found

    def _all_same(self, total: float, squared: float) -> bool:
        """Whether all ranks gave one number: then, and only then, they do not vary."""
        return squared * distributed.get_world_size(self._group) == total * total

    def _refuse_other_places(self) -> None:
        """Says which rank is elsewhere; every rank gets here together.

        Raises:
            DataError: it is this one.
            PeerError: it is another.
        """
        position, world = self._ctx.position, distributed.get_world_size(self._group)
        found: list[Any] = [None] * world
        here = (position.epoch, position.global_step, self.at)
        distributed.all_gather_object(found, here, group=self._group)
        counts = {one: found.count(one) for one in found}
        usual = max(counts, key=lambda one: (counts[one], not one[2], -one[0]))
        other = next(rank for rank, one in enumerate(found) if one != usual)
        said = (
            f"{_said(found[other])}, and the others {_said(usual)}: its loader gives another "
            "number of batches; give every rank equally many (hatbus.data.loader does)"
        )
        if found[distributed.get_rank()] != usual:
            raise DataError(f"rank {distributed.get_rank()} is {said}")
        raise PeerError(f"rank {other} is {said}")

    def _taken(self) -> list[Request]:
        taken, self._granted = self._granted, []
        return taken


def _said(place: tuple[int, int, str]) -> str:
    epoch, steps, at = place
    return f"{at or f'in epoch {epoch}'}, after {steps} steps"
