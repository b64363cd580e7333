"""Requests to the loop that all processes of a run know, and serve at the same place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import torch
from torch import distributed

from hatbus.batches.finite import FINITE
from hatbus.errors import DataError, PeerError
from hatbus.loop.control import LASTING, SIGNAL, STOP_EPOCH, Control, Request, plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hatbus.loop.context import Context
    from hatbus.parallel.modes.riding import Riding

STEPS: Final = 1 << 15
"""Numbers below this can be compared by their sum and the sum of their squares."""
Reasons = list[tuple[str, str]]
"""Why something is left out: ``(plugin, reason)``."""
_PLACES: Final = 256
_HEAD: Final = 8
"""Numbers of a message that are the control's own."""


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


class AgreedControl(Control):
    """Requests that every rank knows: what one rank asks for, all do, at the same boundary.

    What is asked for at one boundary is known at the next, and is served one step later than in a
    single process. Whether anybody asks travels with the gradients in between, so nothing is sent
    that would not be sent anyway, and the ranks tell each other what for only if somebody does.
    Where gradients cannot carry it, there is one small all-reduce per step, launched at one
    boundary and read at the next: no rank waits for it. Where a plugin needs numbers of all ranks
    inside the step, requests go along with those, and are served at the end of that very step. At
    the end of an epoch and of the run the ranks wait for each other. Rank 0's clock goes with all
    of them: plugins with an interval in seconds are due in the same steps everywhere.
    """

    __slots__ = (
        "_began",
        "_carrier",
        "_ctx",
        "_granted",
        "_group",
        "_is_starting",
        "_is_timekeeper",
        "_known",
        "_mine",
        "_more",
        "_now",
        "_sent",
        "_sent_at",
        "_timeouts",
        "_work",
        "at",
    )
    is_shared = True
    _WISHES = ("validate", "save", "stop epoch", "stop run")

    def __init__(self, ctx: Context, timeouts: Timeouts | None) -> None:
        super().__init__(ctx.bus.callers)
        self.at = ""
        self._ctx, self._timeouts, self._is_starting = ctx, timeouts, timeouts is not None
        self._more: list[Any] = []
        self._carrier: Riding | None = None
        self._group = self._new_group()
        self._is_timekeeper = distributed.get_rank() == 0
        self._granted: list[Request] = []
        self._known: list[Request] = []
        self._mine: list[Request] = []
        self._sent_at = -1
        self._work: Any = None
        self._sent = self._head([])
        distributed.all_reduce(self._sent, group=self._group)
        self._began = self._now = self._sent[_HEAD - 1].item()

    def ride(self, carrier: Riding | None) -> None:
        """What takes along whether anybody asks, from the next boundary on; None: nothing does.

        Every rank calls this at the same place. What an earlier one has not taken yet goes by
        itself.
        """
        if self._is_riding() and self._unload():
            self._launch()
        self._carrier = carrier

    def due(self, at: str = "") -> bool:
        """Whether a request was agreed; every rank calls this at the same boundaries.

        Raises:
            DataError: this rank is at another boundary than the others.
            PeerError: another rank is.
        """
        self.at = at
        if at:
            self._meet()
        else:
            self._receive()
            if self._sent_at != self._ctx.position.global_step:
                self._say()
        self._granted, self._known = self._known, []
        self.at = ""
        if self._is_starting and not at:
            self._shorten_timeouts()
        return bool(self._granted)

    def ask_alike(self, *requests: Request) -> None:
        """Requests that every rank makes at this very place: all know of them."""
        self._known.extend(requests)

    def is_owed(self) -> bool:
        """Whether a request was agreed that was made since; every rank calls this at the end."""
        self.at = "at the end of the run"
        self._meet()
        self._granted, self._known = self._known, []
        return bool(self._granted)

    def together(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers added up over all ranks, which wait for each other.

        The first of a step takes requests along, so that nothing has to be sent at its end.

        Args:
            numbers: (n,) in float64 on the host; n is the same on all ranks.
        """
        if self._sent_at == self._ctx.position.global_step:
            distributed.all_reduce(numbers, group=self._group)
            return numbers
        self._meet(numbers)
        return self._sent[_HEAD:]

    def now(self) -> float:
        """Rank 0's clock when the last message that was read was sent."""
        return self._now

    def anywhere(self, flags: list[bool]) -> list[bool]:
        """Which flags are set on any rank; the ranks wait for each other."""
        counts = torch.tensor(flags, dtype=torch.float32)
        distributed.all_reduce(counts, group=self._group)
        return [bool(count) for count in counts.tolist()]

    def agree(self, found: list[Reasons]) -> list[Reasons]:
        """The reasons of all ranks, which wait for each other; each has asked equally often."""
        if not found:
            return []
        flags = [flags_of(reasons) for reasons in found]
        counts = self.together(torch.cat(flags)).reshape(len(found), _PLACES).tolist()
        pairs = zip(found, counts, strict=True)
        return [with_others(mine, theirs, self._ctx) for mine, theirs in pairs]

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
        self._group = self._work = self._carrier = None

    def _new_group(self) -> Any:
        if self._timeouts is None:
            return distributed.new_group(backend="gloo")
        seconds = self._timeouts.start if self._is_starting else self._timeouts.later
        return distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))

    def state_dict(self) -> dict[str, Any]:
        """What this rank asked for: what all know at this boundary, and what they know later."""
        known = [*(r for r in (self.epoch_stopped,) if r is not None), *self._known]
        parts = {"over": known, "asked": self._mine, "later": self.pending}
        found = {k: plain(r for r in part if r.wish in LASTING) for k, part in parts.items()}
        state: dict[str, Any] = {k: part for k, part in found.items() if part}
        if not state:
            return {}
        is_known = self._work is None and not self._is_riding()
        is_sent = is_known and self._sent_at == self._ctx.position.global_step
        return {**state, "is_asked": self.is_serving, "is_sent": is_sent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what was asked for, and asks again; every rank calls this at the same place.

        Saved before the requests of the boundary were agreed, those asked for at the one before are
        granted now, and those of this one are sent, if they would have been; saved after it, they
        had been.
        """
        read = {k: [Request(*r) for r in state.get(k, ())] for k in ("over", "asked", "later")}
        anew, self.pending = self.pending, []
        over, asked, later = read["over"], read["asked"], read["later"]
        is_serving, is_sent = self.anywhere([bool(state.get(k)) for k in ("is_asked", "is_sent")])
        if not is_serving:
            over, asked, later = [*over, *asked], *(([], later) if is_sent else (later, []))
        is_over = self.anywhere([any(r.wish == STOP_EPOCH for r in over)])[0]
        if is_over:
            mine = [r for r in over if r.wish == STOP_EPOCH]
            self.grant(mine[0] if mine else Request(STOP_EPOCH, "another rank", "see its log"))
        self.pending = asked
        self._send()
        self.pending = [*(r for r in over if r.wish != STOP_EPOCH), *later, *anew]

    def _shorten_timeouts(self) -> None:
        """The first step is over: from now on no rank waits longer for another than is usual."""
        self._is_starting = False
        assert self._timeouts is not None  # noqa: S101 - nothing is starting without them
        ddp = getattr(self._ctx.wrapped_model, "process_group", None)
        self._timeouts.shorten(None, self._group, *self._more, *(() if ddp is None else (ddp,)))

    def _meet(self, numbers: torch.Tensor | None = None) -> None:
        """Exchanges what is asked for, and waits; what was sent before is read first."""
        if self._is_riding():
            self._unload()
            self.pending[:0] = self._mine  # a signal may add to the list meanwhile
        self._receive()
        self._send(numbers)
        self._receive()

    def _say(self) -> None:
        """Sends what was asked for here at this boundary: whether anybody did, by the gradients."""
        if self._carrier is None:
            self._send()
            return
        self._mine, self.pending = self.pending, []
        self._sent_at = self._ctx.position.global_step
        clock = time.monotonic() - self._began if self._is_timekeeper else 0.0
        self._carrier.load(asks=bool(self._mine), step=self._sent_at, clock=clock)

    def _send(self, numbers: torch.Tensor | None = None) -> None:
        """Sends what was asked for here, and numbers to add up."""
        self._mine, self.pending = self.pending, []
        self._sent_at = self._ctx.position.global_step
        self._launch(numbers)

    def _launch(self, numbers: torch.Tensor | None = None) -> None:
        head = self._head(self._mine)
        self._sent = head if numbers is None else torch.cat([head, numbers])
        self._work = distributed.all_reduce(self._sent, group=self._group, async_op=True)

    def _is_riding(self) -> bool:
        return self._carrier is not None and self._carrier.is_loaded

    def _unload(self) -> bool:
        """Reads what came with the gradients; whether the ranks have more to tell each other.

        Raises:
            DataError: this rank is in another step than the others.
            PeerError: another rank is.
        """
        assert self._carrier is not None  # noqa: S101 - it is riding
        found = self._carrier.unload()
        if found is None:  # no gradients were exchanged
            return True
        if not found.is_same_step:
            self._refuse_other_places()
        self._now = self._began + found.clock
        return found.asks

    def _receive(self) -> None:
        """Reads what was sent last: then all know what one asked for.

        Raises:
            DataError: this rank is at another boundary than the others.
            PeerError: another rank is.
        """
        if self._is_riding() and self._unload():
            self._launch()
        if self._work is None:
            return
        work, self._work = self._work, None
        work.wait()
        mine, self._mine = self._mine, []
        *counts, by_signal, at, squared, self._now = self._sent[:_HEAD].tolist()
        if not self._all_same(at, squared):
            self._refuse_other_places()
        for wish, asked in zip(self._WISHES, counts, strict=True):
            if asked:
                who = SIGNAL if by_signal and wish in ("save", "stop run") else "another rank"
                own = [r for r in mine if r.wish == wish]
                self._known.append(own[0] if own else Request(wish, who, "see its log"))

    def _head(self, requests: list[Request]) -> torch.Tensor:
        """What this rank adds to the sum over all.

        A number per wish; whether a signal asks; a number for the boundary, and its square, which
        together show whether all ranks are at the same; and the time on rank 0.
        """
        wishes = [float(any(r.wish == wish for r in requests)) for wish in self._WISHES]
        at = (2 * self._ctx.position.global_step + bool(self.at)) % STEPS
        clock = time.monotonic() if self._is_timekeeper else 0.0
        by_signal = float(any(r.by == SIGNAL for r in requests))
        return torch.tensor([*wishes, by_signal, at, at * at, clock], dtype=torch.float64)

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
        taken, self._granted, self._known = [*self._granted, *self._known], [], []
        return taken


def flags_of(reasons: Reasons) -> torch.Tensor:
    """A flag for every plugin that has a reason; of one length, whatever plugins there are."""
    flags = torch.zeros(_PLACES, dtype=torch.float64)
    for name, _ in reasons:
        flags[place_of(name)] = 1
    return flags


def with_others(found: Reasons, counts: list[Any], ctx: Context) -> Reasons:
    """This rank's reasons, and one in the name of every plugin that has one on another rank."""
    more = {place for place, asked in enumerate(counts) if asked}
    more -= {place_of(name) for name, _ in found}
    names = {place_of(name): name for name in ctx.bus.members}
    return [*found, *((names.get(place, "a plugin"), "on another rank") for place in sorted(more))]


def place_of(name: str) -> int:
    """Where a plugin's answer stands among the answers; the first place is for bad losses alone."""
    return 0 if name == FINITE else 1 + crc32(name.encode()) % (_PLACES - 1)


def _said(place: tuple[int, int, str]) -> str:
    epoch, steps, at = place
    return f"{at or f'in epoch {epoch}'}, after {steps} steps"
