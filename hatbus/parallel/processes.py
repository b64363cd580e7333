"""Several processes: DDP, gradients shared once per step, and requests agreed over all ranks."""

from __future__ import annotations

import gc
import operator
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from hatbus.batches.finite import FINITE
from hatbus.events.declare import hookimpl
from hatbus.loop.control import LASTING, STOP_EPOCH, Control, Request, plain
from hatbus.loop.structure import structure_of
from hatbus.parallel.sharding import is_sharded

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from hatbus.loop.context import Context

_runs: Final = count()
_exchanged: Final[WeakKeyDictionary[Any, list[torch.nn.Parameter]]] = WeakKeyDictionary()
"""What the wrappers reduce: torch finds that out once, when a wrapper is made."""
_PLACES: Final = 256


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun set them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """The process group of a torchrun run; nothing without torchrun, or when one exists."""
    if rank_and_world()[1] == 1 or distributed.is_initialized():
        yield
        return
    store, rank, world = _meeting()
    # The store outlives a group: without a prefix of its own a second run would meet the first's
    # addresses there, and wait for ever.
    store = PrefixStore(f"hatbus run {next(_runs)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@cache
def _meeting() -> tuple[Any, int, int]:
    """Where the processes meet, for all runs: some would wait at the first store for ever."""
    found: tuple[Any, int, int] = next(rendezvous("env://"))
    return found


def told_by_first(key: str, text: str) -> str:
    """What the first process says; the others wait for it. Every rank asks once per key."""
    if distributed.is_initialized():
        said = [text]
        distributed.broadcast_object_list(said, 0)
        return said[0]
    store, rank, _ = _meeting()
    store = PrefixStore("hatbus says", store)
    if rank == 0:
        store.set(key, text)
        return text
    return bytes(store.get(key)).decode()


def let_go(ctx: Context) -> None:
    """Lets go of what would keep the process group alive after a run of several processes.

    Its threads then end with the group. Those that live on until the interpreter ends are killed
    by it, and now and then take the process with them (SIGABRT), although all is well. Not after an
    error: another rank may still be waiting for this one, and the group's end would wait for it.
    """
    if ctx.world_size == 1:
        return
    ctx.wrapped_model = ctx.model
    ctx.control.close()
    gc.collect()  # a DDP wrapper and its hooks hold each other


def wrapped_in_ddp(model: torch.nn.Module, device: torch.device, *, many_tasks: bool) -> Any:
    """The model as its DDP wrapper when there are several processes.

    A model whose parameters are sharded already (``fully_shard``, FSDP2) exchanges its own.

    Args:
        model: the raw model.
        device: of this process.
        many_tasks: whether a batch may leave parameters without a gradient.
    """
    if rank_and_world()[1] == 1 or is_sharded(model):
        return model
    if not any(p.requires_grad for p in model.parameters()):
        return model
    ids = [device.index or 0] if device.type == "cuda" else None
    wrapper = torch.nn.parallel.DistributedDataParallel(
        model, device_ids=ids, find_unused_parameters=many_tasks
    )
    _exchanged[wrapper] = trained_in(model)
    return wrapper


def trained_in(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters of a model that get gradients."""
    return [one for one in model.parameters() if one.requires_grad]


class ShareGradientsOnce:
    """Gradients are exchanged in the last backward of a step only (DDP's ``no_sync``)."""

    def __init__(self) -> None:
        self._begun, self._structure = 0, -1

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self) -> Generator[None, Any, Any]:
        """Counts the batches of a step; two of them may be one object, or be replaced."""
        self._begun = 0
        return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def run_batch(self, ctx: Context) -> Generator[None, Any, Any]:
        """Forward and backward of all but the last batch stay on this rank."""
        if not self._begun and self._structure != structure_of(ctx):
            self._follow(ctx)
        self._begun += 1
        shared: Any = ctx.wrapped_model
        is_last = self._begun >= len(ctx.batches)
        if is_last or not isinstance(shared, torch.nn.parallel.DistributedDataParallel):
            return (yield)
        with shared.no_sync():
            return (yield)

    def _follow(self, ctx: Context) -> None:
        """Makes the DDP wrapper anew if it is not for the parameters that train now.

        The old one has to be gone first: its hooks on parameters that stay would reduce them twice.
        """
        self._structure = structure_of(ctx)
        inner: Any = ctx.wrapped_model
        known, now = _exchanged.get(inner), trained_in(ctx.model)
        if known is not None:
            if len(known) == len(now) and all(map(operator.is_, known, now)):
                return
            inner = inner.module
        ctx.wrapped_model = None
        gc.collect()
        many_tasks = len(getattr(ctx.data, "tasks", ())) > 1
        ctx.wrapped_model = wrapped_in_ddp(inner, ctx.device, many_tasks=many_tasks)


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

    __slots__ = ("_counts", "_granted", "_group", "_is_timekeeper", "_mine", "_now", "_work")
    is_shared = True
    _WISHES = ("validate", "save", "stop epoch", "stop run")

    def __init__(self, lines: Any = None) -> None:
        super().__init__(lines)
        self._group: Any = distributed.new_group(backend="gloo")
        self._is_timekeeper = distributed.get_rank() == 0
        self._counts = self._message([])
        distributed.all_reduce(self._counts, group=self._group)
        self._now = self._counts[-1].item()
        self._granted: list[Request] = []
        self._mine: list[Request] = []
        self._work: Any = None

    def due(self) -> bool:
        """Whether a request was agreed; every rank calls this at the same boundaries."""
        self._granted = self._agreed()
        self._ask_all()
        return bool(self._granted)

    def is_owed(self) -> bool:
        """Whether a request was agreed that was made since; every rank calls this at the end.

        The first time that is a request of the last boundary; then the ranks wait for each other.
        """
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

    def close(self) -> None:
        """Ends the group; what was agreed is known by now."""
        if self._group is not None:
            distributed.destroy_process_group(self._group)
        self._group = self._work = None

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

    def _ask_all(self) -> None:
        """Sends what was asked for here; the answer is there at the next boundary."""
        self._mine, self.pending = self.pending, []
        self._counts = self._message(self._mine)
        self._work = distributed.all_reduce(self._counts, group=self._group, async_op=True)

    def _message(self, requests: list[Request]) -> torch.Tensor:
        """What this rank adds to the sum over all: a number per wish, and the time on rank 0."""
        wishes = [float(any(r.wish == wish for r in requests)) for wish in self._WISHES]
        clock = time.monotonic() if self._is_timekeeper else 0.0
        return torch.tensor([*wishes, clock], dtype=torch.float64)

    def _agreed(self) -> list[Request]:
        if self._work is None:
            return []
        self._work.wait()
        found = []
        *counts, self._now = self._counts.tolist()
        for wish, asked in zip(self._WISHES, counts, strict=True):
            mine = [r for r in self._mine if r.wish == wish]
            if asked:
                found.append(mine[0] if mine else Request(wish, "another rank", "see its log"))
        return found

    def _taken(self) -> list[Request]:
        taken, self._granted = self._granted, []
        return taken
