"""What all processes decide and add up in a step, in one message: reasons, metrics, losses.

A plugin whose numbers are to be added up over all processes has a method ``rank_sums(ctx, moment)``
and asks for the sums by ``summed(ctx, self, moment)``. Whoever asks first at a moment has the
numbers of all plugins exchanged, so ten metric updaters cost what one costs; at a step's end the
requests to the loop go along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from zlib import crc32

import torch
from torch import Tensor, distributed

from hatbus.errors import HookError, JobError
from hatbus.events.declare import hookimpl
from hatbus.parallel.agreed import STEPS, AgreedControl, Reasons, flags_of, with_others
from hatbus.parallel.sharding import is_sharded

if TYPE_CHECKING:
    from collections.abc import Generator

    from hatbus.loop.context import Context

Moment = Literal["step", "epoch"]
_SUMS: Final = "parallel.sums"


class AddsUp(Protocol):
    """A plugin with numbers that count over all processes."""

    def rank_sums(self, ctx: Any, moment: Moment) -> Tensor | None:
        """This process's numbers at the end of a ``"step"`` or an ``"epoch"``.

        Called on every process, also where the plugin's events are silent (``ranks = "zero"``); it
        changes nothing.

        Returns:
            (n,), floating, of one length on all processes; None, on all, where nothing is due.
        """


def summed(ctx: Context, plugin: AddsUp, moment: Moment) -> Tensor:
    """The sums over all processes of what a plugin's ``rank_sums`` gives at this moment.

    A collective: every process asks at the same places.

    Args:
        ctx: of the run, or of the validation, that the plugin is in.
        plugin: on the context's bus.
        moment: ``"step"`` in ``on_step_end``, ``"epoch"`` in ``on_epoch_end``.

    Returns:
        (n,) in float64 on the run's device (float32 where it has none).

    Raises:
        HookError: its ``rank_sums`` gave None.
    """
    return sums_of(ctx).of(plugin, moment)


def sums_of(ctx: Context) -> Sums:
    """What is added up in a run; a context beside it may have the same storage."""
    found: Sums | None = ctx.storage.get(_SUMS)
    if found is None or found.ctx is not ctx:
        ctx.storage[_SUMS] = found = Sums(ctx)
    return found


class Sums:
    """The sums of a run at its present moment.

    Attributes:
        ctx: of the run.
    """

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._at: tuple[Any, ...] = ()
        self._parts: dict[int, Tensor] = {}
        self._givers: list[Any] = []
        self._freezes = -1

    def of(self, plugin: AddsUp, moment: Moment) -> Tensor:
        """A plugin's sums; the first who asks at a moment has all exchanged."""
        if self._at != self._now(moment):
            self.exchange(moment)
        part = self._parts.get(id(plugin))
        if part is None:
            raise HookError(
                f"{type(plugin).__name__} asks for sums over all ranks at the end of the {moment}, "
                "and its rank_sums(ctx, moment) gives None there; let it give its numbers"
            )
        return part

    def exchange(self, moment: Moment, flags: Tensor | None = None) -> list[float]:
        """Adds up what all plugins give, and flags; the ranks wait for each other.

        Args:
            moment: whose end it is.
            flags: (n,), on all ranks or on none.

        Returns:
            How many ranks have set each flag.
        """
        numbers = self._numbers(moment)
        control, device = self.ctx.control, self.ctx.device
        if moment == "epoch" and isinstance(control, AgreedControl):
            control.at = f"at the end of epoch {self.ctx.epoch_id}"  # for those who wait for it
        beside = torch.zeros(0, dtype=torch.float64) if flags is None else flags.double()
        if device is None or device.type == "cpu":
            beside = self._together(moment, torch.cat([beside, *numbers.values()]))
            row = beside[len(beside) - sum(map(len, numbers.values())) :]
        else:  # on its own way, for which the host does not wait
            row = torch.cat(list(numbers.values())) if numbers else beside[:0]
            if len(row):
                _add_up(row, self.ctx)
            if flags is not None:
                beside = self._together(moment, beside)
        if isinstance(control, AgreedControl):
            control.at = ""
        self._at = self._now(moment)
        parts = torch.split(row, [len(one) for one in numbers.values()]) if numbers else ()
        self._parts = dict(zip(numbers, parts, strict=True))
        return beside[: 0 if flags is None else len(flags)].tolist()

    def _numbers(self, moment: Moment) -> dict[int, Tensor]:
        """What every plugin gives, by its id, in the order of the bus."""
        bus, device = self.ctx.bus, self.ctx.device
        if self._freezes != bus.freezes:
            plugins = (member.plugin for member in bus.members.values())
            self._givers = [one for one in plugins if callable(getattr(one, "rank_sums", None))]
            self._freezes = bus.freezes
        given = ((id(one), one.rank_sums(self.ctx, moment)) for one in self._givers)
        wide = wide_of(device)
        return {key: found.detach().to(device, wide) for key, found in given if found is not None}

    def _together(self, moment: Moment, numbers: Tensor) -> Tensor:
        control = self.ctx.control
        if moment == "step" and isinstance(control, AgreedControl):
            return control.together(numbers)
        _add_up(numbers, self.ctx)
        return numbers

    def _now(self, moment: Moment) -> tuple[Any, ...]:
        position = self.ctx.position
        return moment, self.ctx.epoch_id, position.epoch, position.global_step


def _add_up(numbers: Tensor, ctx: Context) -> None:
    if ctx.world_size > 1:
        distributed.all_reduce(numbers)


def wide_of(device: torch.device | None) -> torch.dtype:
    """The widest floating type of a device."""
    return torch.float32 if device is not None and device.type == "mps" else torch.float64


class AgreedDecisions:
    """What one rank decides, all do: leave out a batch, an update or a checkpoint.

    Otherwise gradients would be shared with a rank that has none, or weights drift apart. The ranks
    wait for each other, so it is done only where some plugin of the run decides (``Bus``).
    """

    @hookimpl(wrapper=True, tryfirst=True)
    def skip_batch(self) -> Generator[None, Any, Any]:
        """Is there on all ranks where a plugin of one decides; the loop has the answers agreed."""
        return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def skip_update(self, ctx: Context) -> Generator[None, Any, Any]:
        """The reasons of all ranks; the metrics of the step go along."""
        found: Reasons = yield
        counts = sums_of(ctx).exchange("step", flags_of(found))
        return with_others(found, counts, ctx)

    @hookimpl(wrapper=True, tryfirst=True)
    def veto_checkpoint(self, ctx: Context) -> Generator[None, Any, Any]:
        """The reasons of all ranks."""
        found: Reasons = yield
        return with_others(found, ctx.control.anywhere(flags_of(found).tolist()), ctx)


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
        control, has_tasks = ctx.control, len(getattr(ctx.data, "tasks", ())) > 1
        if has_tasks and isinstance(control, AgreedControl) and is_sharded(ctx.model):
            tasks = [task for task, _, _ in ctx.batches]
            if not control.is_same(crc32(repr(tasks).encode()) % STEPS):
                raise JobError(
                    f"rank {ctx.rank} has tasks {tasks} in step {ctx.global_step_id}, and another "
                    "rank others; a sharded model (FSDP2) needs the same on all: let the task "
                    "sampler choose by seed, epoch and step alone, not by rank"
                )
        return (yield)
