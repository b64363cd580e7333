"""A training that is undone: the trainer's own loop, model and data, for a look at what they do."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from hatbus import rng
from hatbus.bus.blame import locate
from hatbus.bus.bus import Bus, named_instances
from hatbus.data.feed import generators_of
from hatbus.data.stateful import gives_nothing_at_its_end
from hatbus.data.steps import Steps
from hatbus.data.workers import own_iteration
from hatbus.evaluation.aside import context_beside, place_of
from hatbus.evaluation.kept import Kept
from hatbus.events.declare import hookimpl
from hatbus.loop.loop import Loop, UnprovidedSpans, is_done
from hatbus.loop.modes import TrainModes
from hatbus.loop.structure import structure_watched
from hatbus.parallel.beside import share_at_start
from hatbus.parallel.modes.exchange import wrapped
from hatbus.parallel.processes import control_of, joined, let_go, spread_first

if TYPE_CHECKING:
    from hatbus.loop.context import Context

_STAGES: Final = ("setup", "train")
_SPANS: Final = (
    *("run_epoch", "run_step", "run_batch", "forward", "compute_loss"),
    *("backward", "clip_gradients", "optimizer_step", "skip_batch", "skip_update"),
)
"""Whoever has a part in one of these takes part, of whatever stage; but no schedule does."""
_CORE: Final = (
    *("task_scope", "moments", "share_gradients_once", "share_beside", "autocast"),
    *("schedule_free", "loss_scaling", "agreed_decisions", "batch_processor"),
)


def rehearsed(
    bus: Bus,
    training: Context,
    num_steps: int,
    plugins: Sequence[object] | Mapping[str, object] = (),
) -> Context:
    """Trains for some steps, and undoes it; see ``Trainer.rehearse``.

    Args:
        bus: of the trainer.
        training: its context, which is left as it is.
        num_steps: at most.
        plugins: that take part beside the trainer's own.

    Returns:
        The rehearsal's context.
    """
    own = _bus(bus, plugins)
    own.set_tasks(training.data.tasks)
    spread_first(training)
    with _as_before(bus, own, training), _own_steps(training) as steps:
        ctx = context_beside(own, training)
        ctx.data, ctx.storage = steps, dict(training.storage)
        ctx.num_epochs, ctx.num_steps = None, ctx.position.global_step + num_steps
        ctx.total_steps, ctx.position.step = None, 0
        with joined(ctx):
            ctx.control = control_of(ctx)
            try:
                _train(ctx)
            except BaseException as error:
                locate(error, ctx)
                raise
            finally:
                steps.close()
            let_go(ctx)
    return ctx


def _train(ctx: Context) -> None:
    TrainModes().enter(ctx.model)
    share_at_start(ctx)
    ctx.wrapped_model = wrapped(ctx, ctx.model)
    ctx.emit = ctx.bus.emitter()
    with structure_watched(ctx):
        ctx.emit.run_loop(ctx)


class _Loop(Loop):
    """The loop, for plugins that are in another run too."""

    @hookimpl(trylast=True)
    def run_loop(self, ctx: Context) -> int:
        """Runs epochs until there were enough steps, or a plugin stopped it."""
        while not is_done(ctx):
            ctx.epoch_id = ctx.position.epoch
            ctx.emit.run_epoch(ctx)
            ctx.control.withdraw("stop epoch")
            ctx.control.leave_epoch()
        return ctx.position.global_step


def _bus(bus: Bus, plugins: Sequence[object] | Mapping[str, object]) -> Bus:
    own = Bus(rank=bus.rank)
    parts = {name: bus.members[f"core.{name}"].plugin for name in _CORE if _has(bus, name)}
    for name, part in {**parts, "loop": _Loop(), "nobody": UnprovidedSpans()}.items():
        own.register(part, f"core.{name}", core=True)
    training = {impl.plugin_name for span in _SPANS for impl in bus.implementations(span)}
    for member in sorted(bus.members.values(), key=lambda one: one.position):
        stage = member.declared.stage
        takes_part = stage in _STAGES or (member.name in training and stage != "schedule")
        if not member.core and takes_part:
            own.register(member.plugin, member.name, overrides=place_of(member))
    for own_name, instance in named_instances(plugins):
        own.register(instance, own_name)
    return own


def _has(bus: Bus, name: str) -> bool:
    return f"core.{name}" in bus.members


@contextmanager
def _as_before(bus: Bus, own: Bus, training: Context) -> Iterator[None]:
    """Model, optimizer, what takes part, and the random state are afterwards as before."""
    plugins = [member.plugin for name, member in own.members.items() if name in bus.members]
    modules = [training.model, *training.modules.values()]
    kept = Kept([*modules, training.optimizer, training.scaler, training.storage, *plugins])
    with rng.fenced():
        try:
            yield
        finally:
            kept.put_back()


@contextmanager
def _own_steps(training: Context) -> Iterator[Steps]:
    """Steps over the training's data, from the start of its epoch; its place there is kept."""
    feeds = training.data.feeds
    with ExitStack() as stack:
        for feed in feeds.values():
            stack.enter_context(_place_kept(feed.loader))
        yield training.data.over({task: own_iteration(f.loader) for task, f in feeds.items()})


@contextmanager
def _place_kept(loader: Any) -> Iterator[None]:
    """A loader is afterwards where it was."""
    generators, attributes = Kept(generators_of(loader)), dict(getattr(loader, "__dict__", {}))
    is_fresh = gives_nothing_at_its_end(loader) and getattr(loader, "_iterator", None) is None
    has_place = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    place = copy.deepcopy(loader.state_dict()) if has_place and not is_fresh else None
    try:
        yield
    finally:
        if attributes:
            vars(loader).clear()
            vars(loader).update(attributes)
        if place is not None:
            loader.load_state_dict(place)
        generators.put_back()
