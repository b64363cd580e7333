"""The run inside a validation: a bus and a loop of its own, which never updates anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hatbus import Bus, Context
from hatbus.bus import Moments, TaskScope
from hatbus.errors import PluginError
from hatbus.evaluation import inherit
from hatbus.loop import Control, Position, UnprovidedSpans
from hatbus_validation.published import outer_name

if TYPE_CHECKING:
    import torch

    from hatbus_validation.callback_tables import Named
    from hatbus_validation.evaluation_loop import EvaluationLoop
    from hatbus_validation.loaders import Passes, Source


class InnerContext(Context):
    """The context of a validation run; its logs are collected, its requests passed on.

    Attributes:
        outer: the context of the training run.
        loader_name: of the loader, where the validation has several; else empty.
        published: kind to name to last value, of everything that was logged.
        is_cut: whether the run was cut short by a signal; what it published is worth nothing then.
    """

    __slots__ = ("is_cut", "loader_name", "outer", "published")

    def __init__(self, bus: Bus, outer: Context, names: tuple[str, str], **values: Any) -> None:
        super().__init__(bus, **values)
        self.outer = outer
        self.is_cut = False
        self.part, self.loader_name = names
        self.published: dict[str, dict[str, Any]] = {}
        self.control = PassedOn(outer.control, bus.callers)
        if "progress" in outer.storage:
            self.storage["progress"] = outer.storage["progress"]

    @property
    def training(self) -> Context:
        """The run around the validation."""
        return self.outer.training

    def name_in_run(self, name: str) -> str:
        """``val/<name>``, or ``val/<loader>/<name>`` when there are several loaders."""
        return outer_name(self.part, self.loader_name, name)

    def log(self, values: Mapping[str, Any], kind: str = "scalar") -> None:
        """Publishes on the inner bus; the outer one gets the last values when the run is over."""
        self.published.setdefault(kind, {}).update(values)
        super().log(values, kind)

    def save(self, reason: str) -> bool:
        """Asks for a checkpoint after the training step: here, other weights may be shown."""
        self.control.save(reason)
        return False


class PassedOn(Control):
    """Requests made inside a validation, handed to the training loop's own list."""

    __slots__ = ("_outer",)

    def __init__(self, outer: Control, lines: Any) -> None:
        super().__init__(lines)
        self.pending = outer.pending
        self._outer = outer

    def now(self) -> float:
        """The training's clock; that of several processes stands still during a validation."""
        return self._outer.now()

    def anywhere(self, flags: list[bool]) -> list[bool]:
        """Which flags are set on any rank."""
        return self._outer.anywhere(flags)


def inner_bus(
    callbacks: Sequence[Named],
    loop: EvaluationLoop,
    processor: object,
    outer: Context,
    tasks: Sequence[str],
    *,
    is_own: bool = False,
) -> Bus:
    """A bus with the core's parts for evaluation, the callbacks, and the training's forward pass.

    Args:
        callbacks: of the validation.
        loop: passes over its data.
        processor: computes no gradients.
        outer: the training run.
        tasks: of the validation.
        is_own: whether the processor is the validation's own, and nothing of the training's plugins
            may take its place.

    Raises:
        PluginError: one that keeps a state is among the plugins of the training too.
    """
    bus = Bus(rank=outer.rank)
    parts: dict[str, object] = {"task_scope": TaskScope()} if tasks else {}
    parts["moments"] = Moments()
    if "core.autocast" in outer.bus.members:
        parts["autocast"] = outer.bus.members["core.autocast"].plugin
    parts.update(loop=loop, batch_processor=processor, nobody=UnprovidedSpans())
    for name, part in parts.items():
        bus.register(part, f"core.{name}", core=True)
    of_training = {id(member.plugin): member.name for member in outer.bus.members.values()}
    for name, callback, overrides in callbacks:
        if id(callback) in of_training and hasattr(callback, "state_dict"):
            raise PluginError(
                f"validation: callbacks: {name!r} is the object that the training has as "
                f"{of_training[id(callback)]!r}, and keeps a state; give each its own instance"
            )
        bus.register(callback, name, overrides=overrides)
    bus.set_tasks(tasks)
    inherit(bus, outer.bus, replacements=not is_own)
    bus.freeze()
    return bus


def evaluate(
    bus: Bus, outer: Context, model: torch.nn.Module, data: Passes, names: tuple[str, str]
) -> InnerContext:
    """Runs the callbacks over the data.

    Args:
        bus: from ``inner_bus``.
        outer: the training run.
        model: in eval mode, on the device, showing the weights to validate.
        data: the batches.
        names: what the published names begin with, and the loader's where there are several.

    Returns:
        The context of the run that is over. Its epoch is the training's; its steps count from 0.
    """
    data.limit = outer.limit_steps
    steps, epoch = data.steps_per_epoch, outer.epoch_id
    ctx = InnerContext(
        bus,
        outer,
        names,
        model=model,
        modules=outer.modules,
        data=data,
        data_loader=data.loader,
        device=outer.device,
        epoch_id=epoch,
        position=Position(epoch),
        num_epochs=epoch + 1,
        steps_per_epoch=steps,
        total_steps=steps,
        updates=outer.updates,
        rank=outer.rank,
        world_size=outer.world_size,
        seed=outer.seed,
        run_dir=outer.run_dir,
        train_metrics=outer.val_metrics,
        val_metrics=outer.val_metrics,
        weights=outer.weights,
    )
    ctx.emit.run_loop(ctx)
    return ctx


def states_of(runs: Sequence[tuple[Source, Passes, Bus]]) -> dict[str, dict[str, Any]]:
    """What the callbacks keep from one validation to the next: loader, then name, to state.

    One that several loaders share stands under the first.

    Args:
        runs: a validation's loaders, batches and buses.
    """
    found: dict[str, dict[str, Any]] = {}
    for loader, name, callback in _stateful(runs):
        found.setdefault(loader, {})[name] = callback.state_dict()
    return found


def give_states(
    runs: Sequence[tuple[Source, Passes, Bus]], saved: Mapping[str, Mapping[str, Any]]
) -> None:
    """Gives callbacks their states back; one that is in no checkpoint starts anew.

    Args:
        runs: a validation's loaders, batches and buses.
        saved: as ``states_of`` gave it.
    """
    for loader, name, callback in _stateful(runs):
        if name in saved.get(loader, {}):
            callback.load_state_dict(saved[loader][name])


def _stateful(runs: Sequence[tuple[Source, Passes, Bus]]) -> Iterator[tuple[str, str, Any]]:
    known: set[int] = set()
    for source, _, bus in runs:
        for name, member in bus.members.items():
            one: Any = member.plugin
            keeps = hasattr(one, "state_dict") and hasattr(one, "load_state_dict")
            if keeps and not member.core and id(one) not in known:
                known.add(id(one))
                yield source.name, name, one
