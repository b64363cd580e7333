"""Several processes: their group, DDP, and gradients shared once per step."""

from __future__ import annotations

import gc
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore

from hatbus import rng
from hatbus.events.declare import hookimpl
from hatbus.log import log
from hatbus.loop.control import Control
from hatbus.loop.structure import structure_of
from hatbus.parallel.agreed import AgreedControl, Timeouts
from hatbus.parallel.alike import check_alike, facts_of
from hatbus.parallel.board import START_TIMEOUT
from hatbus.parallel.failures import peers_told
from hatbus.parallel.launch import RANKS_FOLDER, may_restart, rank_and_world, restarts
from hatbus.parallel.meeting import board_of_all
from hatbus.parallel.sharding import is_sharded
from hatbus.parallel.watch import WATCH

if TYPE_CHECKING:
    from collections.abc import Generator

    from hatbus.loop.context import Context
    from hatbus.parallel.board import Board

TIMEOUTS: Final = "parallel.timeouts"
"""Where in a context's storage the timeouts of its run are."""
TIMEOUT: Final = 600.0
"""Seconds that processes wait for each other after the first step, if nobody says otherwise."""
_groups: Final = count()
_SAVED: Final = "saved"
_SPREAD: Final = "parallel.spread"
_exchanged: Final[WeakKeyDictionary[Any, list[torch.nn.Parameter]]] = WeakKeyDictionary()
"""What the wrappers reduce: torch finds that out once, when a wrapper is made."""
_FLIGHT_RECORDER: Final = {
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
"""What makes torch write down the last collectives of NCCL when one does not end."""


@contextmanager
def joined(ctx: Context) -> Iterator[None]:
    """The process group of a run of several processes, which is watched over meanwhile.

    It is made where there is none. Nothing in a run of one process.

    Raises:
        PeerError: another process failed, or left the others waiting.
    """
    if ctx.world_size == 1 and not may_restart():
        yield
        return
    board = board_of_all()
    board.patience = timeouts_of(ctx).start
    go_on_after_restart(board, ctx)
    try:
        with WATCH.of(ctx), peers_told(ctx), _group(board, ctx):
            yield
    finally:
        board.turn()


def go_on_after_restart(board: Board, ctx: Context) -> None:
    """Lets a run that torchrun has started again go on from what it has saved, if it has."""
    if restarts() and ctx.position.global_step == 0 and board.lasting.check([_SAVED]):
        ctx.storage["resume"] = "auto"
        if ctx.rank == 0:
            log.info("restart %d by torchrun: going on from the newest checkpoint", restarts())


class NotesSaves:
    """Remembers for a restart by torchrun that this run has a checkpoint to go on from."""

    @hookimpl
    def on_checkpoint_saved(self, ctx: Context) -> None:
        """Leaves the note."""
        if ctx.rank == 0:
            board_of_all().lasting.set(_SAVED, "")


def timeouts_of(ctx: Context) -> Timeouts:
    """How long the processes of a run wait for each other."""
    found: Timeouts = ctx.storage.setdefault(TIMEOUTS, Timeouts(START_TIMEOUT, TIMEOUT))
    return found


def control_of(ctx: Context) -> Control:
    """What takes the requests of a run; every process asks for it at the same place."""
    if ctx.world_size == 1:
        return Control(ctx.bus.callers)
    return AgreedControl(ctx, timeouts_of(ctx))


def begin_together(ctx: Context, **more: Any) -> None:
    """Refuses processes that are about to do different things; then each draws its own numbers.

    All have built the same model by now, from the same random numbers. Its dropout is to be
    another on each.

    Raises:
        JobError: which rank differs, and in what.
    """
    if ctx.world_size == 1:
        return
    check_alike(facts_of(ctx, **more), board_of_all())
    if ctx.position.global_step == 0 and not ctx.storage.get(_SPREAD):
        ctx.storage[_SPREAD] = True
        rng.spread(ctx.rank)


@contextmanager
def _group(board: Board, ctx: Context) -> Iterator[None]:
    """The process group, made where there is none."""
    if board.world == 1 or distributed.is_initialized():
        yield
        return
    backend = "nccl" if ctx.device.type == "cuda" else "gloo"
    if backend == "nccl":
        record_flights(ctx)
    distributed.init_process_group(
        backend,
        store=PrefixStore(f"group {next(_groups)}", board.store),
        rank=board.rank,
        world_size=board.world,
        timeout=timedelta(seconds=timeouts_of(ctx).start),
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def record_flights(ctx: Context) -> None:
    """Switches torch's flight recorder on; its files go into the run's folder."""
    for name, value in _FLIGHT_RECORDER.items():
        os.environ.setdefault(name, value)
    if ctx.run_dir is not None:
        folder = ctx.run_dir / RANKS_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(folder / "nccl-rank-"))


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
        model, device_ids=ids, find_unused_parameters=many_tasks, process_group=_own_group(device)
    )
    _exchanged[wrapper] = trained_in(model)
    return wrapper


def _own_group(device: torch.device) -> Any:
    """A group for gradients alone, so that a plugin's exchange never meets them in it.

    On the host. On GPUs it would be a second communicator with memory of its own: None.
    """
    return None if device.type == "cuda" else distributed.new_group(backend="gloo")


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
