"""What a run will do to its optimizer, found out without training.

The job's own model, optimizer and plugins are built, and then only the plugins of stage
``schedule`` hear the loop: its begin, and that of every epoch and step, with the ids that the run
will have. No batch is loaded, no update made. A plugin that acts at known steps may
offer ``preview_marks(ctx)``, which returns ``(global_step_id, label)`` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.bus import Bus
from hatbus.errors import JobError
from hatbus.events.declare import OVERRIDABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hatbus.loop.context import Context
    from hatbus.trainer import Trainer

STAGE: Final = "schedule"
CLAIM: Final = "optimizer."
MOST_POINTS: Final = 4096
"""Steps that are kept of a long run; every one still runs."""


@dataclass
class Preview:
    """What was found.

    Attributes:
        total: steps of the run.
        steps_per_epoch: steps of an epoch; None when they are not known.
        steps: the steps that were kept, ascending.
        values: field (``"lr"``) to group's name to its value at each of ``steps``.
        marks: label (``"validation"``) to the steps where it happens, ascending.
    """

    total: int
    steps_per_epoch: int | None
    steps: list[int] = field(default_factory=list)
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    marks: dict[str, list[int]] = field(default_factory=dict)

    def curves(self, name: str) -> list[tuple[str, list[float]]]:
        """The field's different curves; groups that share one share a label."""
        sharing: dict[tuple[float, ...], list[str]] = {}
        for group, values in self.values[name].items():
            sharing.setdefault(tuple(values), []).append(group)
        if len(sharing) == 1:
            return [(name, list(values)) for values in sharing]
        return [(group_label(groups), list(values)) for values, groups in sharing.items()]


def preview(
    trainer: Trainer,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    steps_per_epoch: int | None = None,
) -> Preview:
    """Runs the schedules of a trainer over all steps. The trainer is spent: do not ``fit`` it.

    Args:
        trainer: built as for the run.
        num_epochs: the plan, as for ``Trainer.fit``.
        num_steps: the plan, as for ``Trainer.fit``.
        steps_per_epoch: taken where a loader has no length.

    Raises:
        JobError: the run's length cannot be known, or a schedule refuses its options.
    """
    ctx = trainer.ctx
    plan(ctx, num_epochs, num_steps, steps_per_epoch)
    if ctx.total_steps is None:
        raise JobError(
            "a loader has no length, so the run's length is not known; plan the run by num_steps, "
            "or give --steps-per-epoch N"
        )
    ctx.storage["preview"] = True  # for schedules that wait for what a training would publish
    ctx.emit = schedules(trainer.bus).emitter()
    found = Preview(ctx.total_steps, ctx.steps_per_epoch)
    found.values = {name: {} for name in scheduled_fields(trainer.bus)}
    stride = max(1, found.total // MOST_POINTS)
    emit_if_heard(ctx, "on_loop_begin")
    for step in walk(ctx):
        if step % stride == 0 or step == found.total - 1:
            record(found, ctx, step)
    found.marks = marks_of(trainer.bus, ctx)
    return found


def plan(
    ctx: Context, num_epochs: int | None, num_steps: int | None, steps_per_epoch: int | None
) -> None:
    """Writes the run's plan into the context, as ``fit`` does."""
    ctx.num_epochs, ctx.num_steps = num_epochs, num_steps
    if ctx.steps_per_epoch is None:
        ctx.steps_per_epoch = steps_per_epoch
    ctx.total_steps = num_steps
    if num_epochs is not None and ctx.steps_per_epoch is not None:
        ctx.total_steps = num_epochs * ctx.steps_per_epoch


def schedules(bus: Bus) -> Bus:
    """A bus that holds the plugins of stage ``schedule`` only, in their order."""
    found = Bus()
    for place in bus.order():
        member = bus.members[place.name]
        if member.declared.stage == STAGE:
            filters = {name: getattr(member.declared, name) for name in OVERRIDABLE}
            found.register(member.plugin, member.name, overrides=filters)
    return found


def scheduled_fields(bus: Bus) -> list[str]:
    """``"lr"``, and what else of the optimizer the schedules claim to write."""
    members = [m for m in bus.members.values() if m.declared.stage == STAGE]
    claims = (claim for m in members for claim in m.declared.writes if claim.startswith(CLAIM))
    return list(dict.fromkeys(["lr", *(claim.removeprefix(CLAIM) for claim in claims)]))


def walk(ctx: Context) -> Iterator[int]:
    """Begins every epoch and step of the run; yields each step after it has begun."""
    total, length, position = ctx.total_steps or 0, ctx.steps_per_epoch, ctx.position
    for step in range(total):
        ctx.epoch_id, ctx.step_id = divmod(step, length) if length else (0, step)
        position.epoch, position.step, position.global_step = ctx.epoch_id, ctx.step_id, step
        if ctx.step_id == 0:
            emit_if_heard(ctx, "on_epoch_begin")
        ctx.global_step_id, position.step, position.global_step = step, ctx.step_id + 1, step + 1
        emit_if_heard(ctx, "on_step_begin")
        yield step


def emit_if_heard(ctx: Context, event: str) -> None:
    """Emits an event of the run to the schedules."""
    listeners = getattr(ctx.emit, event)
    if listeners is not None:
        listeners(ctx)


def record(found: Preview, ctx: Context, step: int) -> None:
    """Keeps every field of every group as it is at a step."""
    found.steps.append(step)
    groups = ctx.optimizer.param_groups if ctx.optimizer is not None else []
    for name, by_group in found.values.items():
        for index, group in enumerate(groups):
            key = str(group.get("name", index))
            by_group.setdefault(key, []).append(read(group, name))


def read(group: dict[str, Any], name: str) -> float:
    """A number of a param group; ``beta1`` is the first of ``betas``."""
    return float(group["betas"][0] if name == "beta1" and "betas" in group else group[name])


def marks_of(bus: Bus, ctx: Context) -> dict[str, list[int]]:
    """What the plugins say they will do, by label."""
    found: dict[str, list[int]] = {}
    for place in bus.order():
        offer = getattr(bus.members[place.name].plugin, "preview_marks", None)
        for step, label in offer(ctx) if offer is not None else ():
            if 0 <= step < (ctx.total_steps or 0):
                found.setdefault(label, []).append(step)
    return {label: sorted(set(steps)) for label, steps in found.items()}


def marks_every(
    label: str, interval: int | None, unit: str, ctx: Context, *, at_end: bool = False
) -> list[tuple[int, str]]:
    """Marks of something that happens every so many steps or epochs; for ``preview_marks``.

    Args:
        label: what happens.
        interval: every so many; None or < 1 for never.
        unit: ``"step"`` or ``"epoch"``.
        ctx: the run's context, its plan known.
        at_end: also in the run's last step.
    """
    total = ctx.total_steps or 0
    length = 1 if unit == "step" else ctx.steps_per_epoch or 0
    every = length * (interval or 0)
    steps = set(range(every - 1, total, every)) if every > 0 else set()
    if at_end and total:
        steps.add(total - 1)
    return [(step, label) for step in sorted(steps)]


def group_label(groups: list[str]) -> str:
    """``"group 0"``, ``"groups 0-3, head"``: consecutive numbers as a range."""
    parts: list[list[str]] = []
    for group in groups:
        follows = parts and group.isdigit() and parts[-1][-1].isdigit()
        if follows and int(group) == int(parts[-1][-1]) + 1:
            parts[-1].append(group)
        else:
            parts.append([group])
    words = [part[0] if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts]
    return f"group{'s' if len(groups) > 1 else ''} {', '.join(words)}"
