"""A bus and a context beside a training, for what is done with its model and is no training.

Only those plugins are on it that decide what the model computes, under which weights, and how it is
validated. So nothing that writes files, counts or schedules hears of it.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.blame import locate
from hatbus.bus.bus import Bus
from hatbus.bus.moments import Moments
from hatbus.errors import JobError
from hatbus.events.declare import OVERRIDABLE
from hatbus.loop.context import Context, Position
from hatbus.loop.loop import UnprovidedSpans
from hatbus.parallel.processes import control_of, joined, let_go

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus.bus.member import Member

STAGES: Final = ("setup", "train", "average")
"""Whose plugins change the model, or offer other weights of it."""
SPANS: Final = ("validate", "forward", "compute_loss", "write_outputs")
"""Whoever implements or surrounds one of these takes part too, of whatever stage."""
_CORE: Final = (
    "core.task_scope",
    "core.schedule_free",
    "core.autocast",
    "core.batch_processor",
)
_SAME: Final = (
    "model",
    "modules",
    "optimizer",
    "scaler",
    "data",
    "data_loader",
    "device",
    "num_epochs",
    "num_steps",
    "steps_per_epoch",
    "total_steps",
    "epoch_id",
    "step_id",
    "global_step_id",
    "updates",
    "rank",
    "world_size",
    "seed",
    "train_metrics",
    "val_metrics",
    "run_dir",
    "storage",
)
"""What the context has from the training's."""


def validated(
    bus: Bus, training: Context, weights: str | None = None, limit_steps: int | None = None
) -> Context:
    """Validates the model as it is, and nothing else.

    Args:
        bus: of the trainer.
        training: its context, which is left as it is.
        weights: the weight view to validate; None: as each validation says.
        limit_steps: batches of each loader at most; None: all of them.

    Returns:
        A context whose ``latest`` holds what was published, and nothing older.

    Raises:
        JobError: nothing validates.
    """
    with aside(bus, training, weights) as ctx:
        ctx.limit_steps = limit_steps
        if ctx.emit.validate(ctx, "asked for") is False:
            raise JobError(
                "nothing validates: the run has no plugin 'validation', or callbacks = [] switches "
                "it off; in a job: -p validation -o 'validation.data_loader=\"@val_loader\"', in "
                "Python: plugins=[Validation(loader)]"
            )
    return ctx


@contextmanager
def aside(bus: Bus, training: Context, weights: str | None = None) -> Iterator[Context]:
    """A context for work beside a training; its plugins are prepared inside, by ``on_loop_begin``.

    Args:
        bus: of the trainer.
        training: its context. The counters are the same; requests, weight views and published
            values are the new one's own.
        weights: the weight view that is asked for; None: none in particular.
    """
    own = bus_beside(bus)
    own.set_tasks(training.data.tasks)
    ctx = context_beside(own, training)
    ctx.weights.asked = weights
    with joined(ctx), _as_before(own):
        ctx.control = control_of(ctx)
        try:
            with ctx.within("run_loop"):
                ctx.began_at = ctx.position.global_step
                yield ctx
        except BaseException as error:
            locate(error, ctx)
            raise
        let_go(ctx)


def context_beside(bus: Bus, training: Context) -> Context:
    """A context that stands where a training's does, and whose counters are its own.

    Args:
        bus: the one beside the training's.
        training: its context.
    """
    ctx = Context(bus, **{name: getattr(training, name) for name in _SAME})
    ctx.wrapped_model, at = ctx.model, training.position
    ctx.position, ctx.is_aside = Position(at.epoch, at.step, at.global_step), True
    return ctx


def bus_beside(bus: Bus) -> Bus:
    """A bus with those plugins of another that take part beside a training.

    They are there in the same order and for the same tasks, but without their intervals.
    """
    own = Bus(rank=bus.rank)
    found = [(name, bus.members[name].plugin) for name in _CORE if name in bus.members]
    for name, part in [("core.moments", Moments()), *found, ("core.nobody", UnprovidedSpans())]:
        own.register(part, name, core=True)
    surrounding = {impl.plugin_name for span in SPANS for impl in bus.implementations(span)}
    for member in sorted(bus.members.values(), key=lambda one: one.position):
        if not member.core and (member.declared.stage in STAGES or member.name in surrounding):
            own.register(member.plugin, member.name, overrides=place_of(member) | {"every": ""})
    return own


def place_of(member: Member) -> dict[str, Any]:
    """A plugin's place on its bus, as overrides for another."""
    return {name: getattr(member.declared, name) for name in OVERRIDABLE}


@contextmanager
def _as_before(bus: Bus) -> Iterator[None]:
    """What the validating plugins remember of the run is afterwards as before.

    A validation that the training does not know of must not stand for one of its own.
    """
    plugins: list[Any] = [m.plugin for m in bus.members.values() if m.declared.stage == "validate"]
    kept = [(p, copy.deepcopy(p.state_dict())) for p in plugins if hasattr(p, "state_dict")]
    try:
        yield
    finally:
        for plugin, state in kept:
            plugin.load_state_dict(state)
