"""What every updater does: read the plan, warm up, set each group's value, log it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hatbus import hookimpl, plugin
from hatbus.events import redeclare
from hatbus.log import log
from hatbus.option_values import UNITS, one_of, text, whole
from hatbus_lr.field import Field, Group, labels
from hatbus_lr.plan import Plan
from hatbus_lr.self_tuning import warn_of_low_lr
from hatbus_lr.warmup import Warmup

if TYPE_CHECKING:
    import torch

    from hatbus.loop import Context

Curve = Callable[[float, int], float]
Line = tuple[float, float]
"""``(share, rest)``: every group's value is ``initial * share + rest``."""
CLAIM: Final = "optimizer.{}"
_LOOKS: Final = 200


@plugin(stage="schedule", writes="optimizer.lr")
class Updater:
    """Base of the updaters; a subclass gives ``line``, and ``prepare`` if it needs the plan.

    All groups share the line of a step, so a step costs one look at the curve, however many groups
    there are. A schedule that is no line of the initial value overrides ``get_lr`` instead, which
    is then called for each group. The value of a step is a pure function of its ids, so a resumed
    run needs no state but each group's initial value, which the optimizer's own state carries
    (``initial_lr``).

    Args:
        update_by: what counts in the formal part: ``"step"`` (``global_step_id``) or ``"epoch"``
            (``epoch_id``; changes at epoch begin only).
        warmup: the warmup; None for none.
        step_log_interval: publish every so many steps, and from 2 on write a line to the log too;
            None for never. With a warmup by epoch the first step of every epoch is logged instead
            (as HAT does).
        log_by: ``"epoch"``: log in the first step of every so many epochs instead.
        field: of the param groups that is set; see ``hatbus_lr.field.Field``.

    Attributes:
        warmup_steps: W, known from ``on_loop_begin`` on.
    """

    def __init__(
        self,
        *,
        update_by: str = "step",
        warmup: Warmup | None = None,
        step_log_interval: int | None = 1,
        log_by: str = "step",
        field: str = "lr",
    ) -> None:
        one_of("update_by", update_by, UNITS)
        text("field", field)
        if step_log_interval is not None:
            whole("step_log_interval", step_log_interval, 1)
        self.update_by = update_by
        self.warmup = warmup or Warmup()
        self.step_log_interval: float = step_log_interval or math.inf
        if step_log_interval is not None and self.warmup.by == "epoch":
            log_by, self.step_log_interval = "epoch", 1
        self.field = Field(field)
        self._name, self._initial = self.field.name, self.field.initial
        self.warmup_steps: float = self.warmup.len if self.warmup.by == "step" else 0
        self._ratio = float(self.warmup.lr_ratio)
        own = type(self).get_lr, type(self).get_warmup_lr
        self._is_line = own == (Updater.get_lr, Updater.get_warmup_lr)
        self._by_step = update_by == "step"
        self._logs_epochs = log_by == "epoch"
        self._says = self._logs_epochs or (step_log_interval or 0) > 1
        self._is_first_step = True
        self._held: dict[str, float] = {}
        self._held_epoch = -1
        self._is_quick = False
        self._labels: tuple[str, ...] = ()
        self._adopted: list[Group] = []
        if field != "lr":
            redeclare(self, writes=CLAIM.format(field))

    # ---- the schedule ---------------------------------------------------------------------------

    def line(self, num_update: int) -> Line:
        """The formal schedule at an absolute index, for all groups."""
        raise NotImplementedError

    def warmup_line(self, num_update: int) -> Line:
        """Warmup at a step below W; the share is of what warmup aims at."""
        if self.warmup.mode == "constant" or not self.warmup_steps:
            return 1.0, 0.0
        share = num_update / self.warmup_steps
        return share, self.warmup.begin_lr * (1.0 - share)

    def get_lr(self, begin_lr: float, num_update: int) -> float:
        """The formal value of one group.

        Args:
            begin_lr: the group's initial value.
            num_update: absolute index (warmup included): ``global_step_id``, or ``epoch_id`` with
                ``update_by="epoch"``.
        """
        share, rest = self.line(num_update)
        return begin_lr * share + rest

    def get_warmup_lr(self, warmup_end_lr: float, num_update: int) -> float:
        """The value during warmup: ``b + (end - b) * num_update / W``, or ``end`` if constant.

        Args:
            warmup_end_lr: what warmup aims at: initial value times ``warmup_lr_ratio``.
            num_update: ``global_step_id``.
        """
        share, rest = self.warmup_line(num_update)
        return warmup_end_lr * share + rest

    def lr_at(self, begin_lr: float, global_step_id: int, epoch_id: int, step_id: int) -> float:
        """The value of any step of the run, without side effects.

        Args:
            begin_lr: the group's initial value.
            global_step_id: the step in the run.
            epoch_id: its epoch.
            step_id: its place in the epoch.
        """
        warms_up, index = self._phase(global_step_id, epoch_id, step_id)
        if warms_up:
            return self.get_warmup_lr(begin_lr * self._ratio, index)
        return self.get_lr(begin_lr, index)

    def prepare(self, plan: Plan) -> None:
        """Takes from the run's plan what the schedule needs; ``warmup_steps`` is known."""

    def published_names(self, ctx: Any) -> list[str]:
        """The values of the groups; some may come later."""
        return [f"{self.field.name}*"]

    # ---- events ---------------------------------------------------------------------------------

    @hookimpl
    def on_loop_begin(
        self, optimizer: Any, data_loader: Any, num_epochs: int | None, **kwargs: Any
    ) -> None:
        """Prepares for the run's length and notes every group's initial value."""
        plan = Plan.read(kwargs.get("ctx"), data_loader, num_epochs, kwargs.get("num_steps"))
        self.warmup_steps = self.warmup.steps(plan, type(self).__name__)
        self.prepare(plan)
        self._adopt(optimizer.param_groups)
        if self.field.name == "lr":
            warn_of_low_lr(type(self).__name__, optimizer, partial(self._highest, plan))

    @hookimpl
    def on_epoch_begin(self, ctx: Context, optimizer: torch.optim.Optimizer) -> None:
        """Sets the value of the epoch's first step, for plugins that look at it now."""
        self._adopt(optimizer.param_groups)  # a checkpoint may have brought other groups
        step, step_id = ctx.position.global_step, ctx.step_id
        self._held = self._set(optimizer.param_groups, *self._phase(step, ctx.epoch_id, step_id))
        is_held = not self._by_step and step - step_id >= self.warmup_steps
        self._held_epoch = ctx.epoch_id if is_held else -1
        self._is_first_step = step_id == 0  # resumed inside an epoch, it was published already

    @hookimpl
    def on_step_begin(self, ctx: Context, optimizer: torch.optim.Optimizer) -> None:
        """Sets the value of this step."""
        step, every, groups = ctx.global_step_id, self.step_log_interval, optimizer.param_groups
        if self._by_step and step >= self.warmup_steps:  # as _phase says; most steps of most runs
            values = self._set(groups, False, step)
        elif self._held_epoch == ctx.epoch_id and self._has_adopted(groups):
            values = self._held
        else:
            values = self._set(groups, *self._phase(step, ctx.epoch_id, ctx.step_id))
        if self._logs_epochs:
            due = self._is_first_step and (ctx.epoch_id + 1) % every == 0
            self._is_first_step = False
        else:
            due = (step + 1) % every == 0
        if due:
            ctx.log(values)
            if self._says and ctx.rank == 0:
                log.info("step %d: %s", step + 1, said(values))

    def set_warmup_training_lr(self, optimizer: torch.optim.Optimizer, num_update: int) -> None:
        """Sets every group to its warmup value.

        Args:
            optimizer: the optimizer.
            num_update: ``global_step_id``, below W.
        """
        for group in optimizer.param_groups:
            end = self.field.remember(group) * self.warmup.lr_ratio
            self.field.write(group, self.get_warmup_lr(end, num_update))

    def _highest(self, plan: Plan, group: Group) -> float:
        """The highest value of a group in the run, as a look at some of its steps shows it."""
        per_epoch = plan.steps_per_epoch or 1
        total = plan.num_steps or (plan.num_epochs or 1) * per_epoch
        steps = {*range(0, total, max(1, total // _LOOKS)), math.ceil(self.warmup_steps), total - 1}
        looked_at = (step for step in steps if step < total)
        return max(self.lr_at(group[self._initial], g, *divmod(g, per_epoch)) for g in looked_at)

    def _phase(self, step: int, epoch: int, step_id: int) -> tuple[bool, int]:
        """Whether a step is part of the warmup, and the index of its value."""
        length = self.warmup_steps
        if step < length:
            return True, step
        if self._by_step:
            return False, step
        if step - step_id < length:  # warmup ended in this epoch: its last value stays
            return True, int(length) - 1
        return False, epoch

    def _set(self, groups: list[Group], warms_up: bool, index: int) -> dict[str, float]:
        """Sets every group's value; gives them back by log name."""
        labels, name, initial = self._labels, self._name, self._initial
        if groups is not self._adopted or not self._is_quick or len(groups) != len(labels):
            return self._set_each(groups, warms_up, index)
        share, rest = self.warmup_line(index) if warms_up else self.line(index)
        ratio = self._ratio if warms_up else 1.0
        values, place = {}, 0
        for group in groups:
            values[labels[place]] = group[name] = group[initial] * ratio * share + rest
            place += 1  # noqa: SIM113 - enumerate and zip cost more than this loop's arithmetic
        return values

    def _set_each(self, groups: list[Group], warms_up: bool, index: int) -> dict[str, float]:
        """The same for new groups, for tensors, and for what is no line of the initial value."""
        if not self._has_adopted(groups):
            self._adopt(groups)
        curve, ratio = (self.get_warmup_lr, self._ratio) if warms_up else (self.get_lr, 1.0)
        values = {}
        for group, label in zip(groups, self._labels, strict=True):
            values[label] = value = curve(group[self._initial] * ratio, index)
            self.field.write(group, value)
        return values

    def _has_adopted(self, groups: list[Group]) -> bool:
        """Whether these are the known groups: a plugin may add one, or put another optimizer."""
        return groups is self._adopted and len(groups) == len(self._labels)

    def _adopt(self, groups: list[Group]) -> None:
        """Notes the groups' initial values and names, and whether plain floats are set."""
        self._adopted = groups
        for group in groups:
            self.field.remember(group)
        self._labels = labels(self.field.name, groups)
        held = (type(group.get(self._name)) for group in groups)
        self._is_quick = self._is_line and all(kind in {int, float} for kind in held)


def said(values: Mapping[str, float]) -> str:
    """``lr 0.01``, or every group's value."""
    return ", ".join(f"{name} {value:.6g}" for name, value in values.items())


def warn_of_long_warmup(who: str, warmup: float, total: int) -> None:
    """Says that a run ends before its formal part begins; a short trial run may want that."""
    if warmup >= total:
        log.warning("%s: warmup of %d steps fills the run of %d steps", who, warmup, total)
