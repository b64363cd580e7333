"""Several processes: their group, and what they do together before and after a run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore

from hatbus import rng
from hatbus.events.declare import hookimpl
from hatbus.log import log
from hatbus.loop.control import Control
from hatbus.parallel.agreed import AgreedControl, Timeouts
from hatbus.parallel.alike import check_alike, facts_of
from hatbus.parallel.board import START_TIMEOUT
from hatbus.parallel.failures import peers_told
from hatbus.parallel.launch import RANKS_FOLDER, may_restart, restarts
from hatbus.parallel.meeting import board_of_all
from hatbus.parallel.modes.exchange import plan_of
from hatbus.parallel.modes.shard import is_to_spread, spread
from hatbus.parallel.sharding import is_sharded, reshard
from hatbus.parallel.together import AgreedDecisions
from hatbus.parallel.watch import WATCH

if TYPE_CHECKING:
    import torch

    from hatbus.loop.context import Context
    from hatbus.parallel.board import Board
    from hatbus.parallel.modes.options import Parallel

TIMEOUTS: Final = "parallel.timeouts"
"""Where in a context's storage the timeouts of its run are."""
TIMEOUT: Final = 600.0
"""Seconds that processes wait for each other after the first step, if nobody says otherwise."""
AGREED: Final = "core.agreed_decisions"
_groups: Final = count()
_SAVED: Final = "saved"
_SPREAD: Final = "parallel.spread"
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
            if is_to_spread(ctx):
                check_alike(facts_of(ctx, parallel=_parallel(ctx)), board)
                spread(ctx)
            yield
            reshard(ctx.model)
    finally:
        board.turn()


def spread_first(ctx: Context) -> None:
    """Puts the model into shards, if that is wanted, before anybody looks at its tensors."""
    if is_to_spread(ctx):
        with joined(ctx):
            pass


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


def act_together(ctx: Context) -> None:
    """Makes requests and decisions those of all processes, in a loop that is not hatbus's own.

    Every process calls it before its run begins, once the process group is there, and then at the
    same places ``ctx.control.due()`` after every step and epoch, and ``ctx.control.is_owed()`` and
    ``ctx.control.close()`` when the run is over. What one asks for, all do, a boundary later.
    Nothing in a run of one process.

    Args:
        ctx: with the run's ``world_size``.
    """
    if ctx.world_size == 1:
        return
    ctx.control = AgreedControl(ctx, None)
    if AGREED not in ctx.bus.members:
        ctx.bus.register(AgreedDecisions(), AGREED, core=True)


def begin_together(ctx: Context, **more: Any) -> None:
    """Refuses processes that are about to do different things; then each draws its own numbers.

    All have built the same model by now, from the same random numbers. Its dropout is to be
    another on each.

    Raises:
        JobError: which rank differs, and in what.
    """
    if ctx.world_size == 1:
        return
    check_alike(facts_of(ctx, parallel=_parallel(ctx), **more), board_of_all())
    if ctx.position.global_step == 0 and not ctx.storage.get(_SPREAD):
        ctx.storage[_SPREAD] = True
        rng.spread(ctx.rank)


def _parallel(ctx: Context) -> dict[str, Any] | None:
    plan = plan_of(ctx)
    return None if plan is None else plan.as_table()


@contextmanager
def _group(board: Board, ctx: Context) -> Iterator[None]:
    """The process group, made where there is none; it stays as long as there are shards in it."""
    if board.world == 1 or distributed.is_initialized():
        yield
        return
    backend = backend_of(ctx.device, plan_of(ctx))
    if "nccl" in backend:
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
        if not is_sharded(ctx.model):
            distributed.destroy_process_group()


def backend_of(device: torch.device, plan: Parallel | None) -> str:
    """What the processes exchange tensors by; those in the host's memory too, where some are."""
    if device.type != "cuda":
        return "gloo"
    return "cpu:gloo,cuda:nccl" if plan is not None and plan.offload else "nccl"


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
