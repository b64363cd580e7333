"""Any scheduler of ``torch.optim.lr_scheduler`` as a plugin."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch.optim import lr_scheduler

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, did_you_mean
from hatbus.evaluation import check_published
from hatbus.log import log
from hatbus.option_values import UNITS, one_of, text, whole
from hatbus_lr.field import labels
from hatbus_lr.remaking import (
    changes,
    made_with,
    put_back,
    scale,
    starts_of,
    take_in,
    with_history,
)
from hatbus_lr.scheduler_kinds import Followed, Kind, check_kind, check_length, kind_of
from hatbus_lr.self_tuning import warn_of_low_lr

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatbus.loop import Context

_MADE_OF_OTHERS: Final = ("SequentialLR", "ChainedScheduler")
_ABSTRACT: Final = ("LRScheduler", "_LRScheduler")


@plugin(stage="schedule", writes="optimizer.lr")
class TorchLr:
    """Steps a scheduler of torch once per step or once per epoch, and saves and restores it.

    The scheduler's own count is ``global_step_id`` or ``epoch_id``: a skipped update counts, as it
    does for hatbus's own updaters. One that follows a metric is stepped when a new value of it was
    published since, and not before the first; over several processes it gets the mean of theirs.

    Args:
        scheduler: the name of a class in ``torch.optim.lr_scheduler``; or a class or function that
            is called with the optimizer (in a job ``"train.py:make_scheduler"``), for
            ``SequentialLR``, your own, and timm's.
        arguments: keyword arguments of the class, without the optimizer.
        update_by: ``"step"`` or ``"epoch"``.
        step_log_interval: log every so many steps; None for never.
        metric: published name whose values are given to ``step``, for ``ReduceLROnPlateau`` and
            others that follow one.

    Raises:
        JobError: a value that is not accepted; at loop begin: the scheduler refuses its arguments,
            does not go with the options, or ends before the run.
    """

    rank_state = ("fresh",)

    def __init__(
        self,
        scheduler: Any,
        arguments: Mapping[str, Any] | None = None,
        update_by: Literal["step", "epoch"] = "step",
        step_log_interval: int | None = 1,
        *,
        metric: str | None = None,
    ) -> None:
        self._make = scheduler_class(scheduler) if isinstance(scheduler, str) else scheduler
        if not callable(self._make):
            raise JobError(
                f"scheduler is {scheduler!r}; accepted: a class name of torch, or a callable"
            )
        if arguments is not None and not isinstance(arguments, Mapping):
            raise JobError(f"arguments is {arguments!r}; accepted: a table of keyword arguments")
        one_of("update_by", update_by, UNITS)
        if step_log_interval is not None:
            whole("step_log_interval", step_log_interval, 1)
        is_torchs = isinstance(scheduler, str)  # what a function makes is looked at when it is made
        if is_torchs and (self._make is lr_scheduler.ReduceLROnPlateau) != (metric is not None):
            raise JobError(
                f"metric is {metric!r}; accepted: a published name such as 'val/loss' with "
                "ReduceLROnPlateau, and None with every other scheduler"
            )
        if metric is not None:
            text("metric", metric)
        self.arguments = dict(arguments or {})
        self.update_by, self.metric = update_by, metric
        self._followed = Followed(metric or "")
        self._kind: Kind = "count"
        self._warned: set[str] = set()
        self.step_log_interval = step_log_interval
        self.scheduler: Any = None
        self._labels: tuple[str, ...] = ()
        self._count = 0
        self._updates_before: int | None = None
        self._restored: Mapping[str, Any] | None = None
        self._made = made_with(self._make, self.arguments, update_by)
        self._built: list[float] = []
        self._starts: list[float] = []
        self._optimizer: Any = None
        self._changed: Mapping[str, Any] | None = None

    @hookimpl
    def on_loop_begin(self, ctx: Context, optimizer: torch.optim.Optimizer) -> None:
        """Builds the scheduler; a second ``fit`` goes on with the one it has."""
        name = getattr(self._make, "__name__", repr(self._make))
        if self.scheduler is None:
            self._make_scheduler(optimizer)
            self._kind = kind_of(self.scheduler, name)
            check_kind(self.scheduler, self._kind, name, self.metric, self.update_by)
            self._built = self._starts = starts_of(optimizer.param_groups)
            warn_of_low_lr(name, optimizer, highest_known)
        planned = ctx.total_steps if self.update_by == "step" else ctx.num_epochs
        check_length(self.scheduler, name, planned, self.update_by)
        if self._restored is not None:
            self.load_state_dict(self._restored)
        self._labels = labels("lr", optimizer.param_groups)

    def published_names(self, ctx: Any) -> list[str]:
        """The learning rates; groups may come later."""
        return ["lr*"]

    def check_watched(self, ctx: Context) -> None:
        """Refuses a metric that nothing in the run publishes.

        Raises:
            JobError: it is so.
        """
        if self.metric is not None:
            check_published(ctx, "torch_lr: metric", self.metric)

    @hookimpl
    def on_log(self, logs: Mapping[str, Any], kind: str) -> None:
        """Keeps the newest value of the metric, on its device."""
        if self.metric is not None and kind == "scalar" and self.metric in logs:
            self._followed.fresh = logs[self.metric]

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Steps the scheduler up to this epoch."""
        self._look_again(ctx)
        if self.update_by == "epoch":
            self._advance(ctx, ctx.epoch_id)

    @hookimpl
    def on_step_begin(self, ctx: Context, optimizer: torch.optim.Optimizer) -> None:
        """Steps the scheduler up to this step, and logs."""
        step, groups = ctx.global_step_id, optimizer.param_groups
        if self._optimizer is not optimizer or len(groups) != len(self._labels):
            self._look_again(ctx)
        if self.update_by == "step":
            self._advance(ctx, step)
        elif self._count < ctx.epoch_id:  # made anew inside the epoch
            self._advance(ctx, ctx.epoch_id)
        if self.step_log_interval is not None and (step + 1) % self.step_log_interval == 0:
            values = (float(group["lr"]) for group in groups)
            ctx.log(dict(zip(self._labels, values, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """The count and the scheduler's state, as plain containers."""
        if self.scheduler is None:
            return {}
        return {
            "count": self._count,
            "scheduler": plain(self.scheduler.state_dict()),
            "fresh": self._followed.fresh,
            "made": self._made,
            "starts": self._built,
            "from": self._starts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the scheduler, now or as soon as there is one."""
        if self.scheduler is None:
            self._restored = state
        elif state:
            self._restored, self._count = None, state["count"]
            self._followed.fresh = state.get("fresh")
            found = changes(state, self._made, self._built, self.scheduler)
            if not found:
                like = self.scheduler.state_dict()
                self.scheduler.load_state_dict(shaped(state["scheduler"], like))
                return
            self._changed = state
            what = "torch_lr: another schedule than the saved one from here: %s"
            log.warning(what, "; ".join(found))

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Says that the metric was never published, so that the lr followed nothing."""
        is_whole = ctx.exception is None and ctx.control.stopped is None
        if self.metric is not None and is_whole and not ctx.storage.get("preview"):
            self._check_published(ctx, at_end=True)

    def _make_scheduler(self, optimizer: torch.optim.Optimizer) -> None:
        try:
            self.scheduler = self._make(optimizer, **self.arguments)
        except (TypeError, ValueError) as error:
            name = getattr(self._make, "__name__", repr(self._make))
            raise JobError(f"torch's {name} refuses its arguments: {error}") from error
        self._optimizer = optimizer

    def _look_again(self, ctx: Context) -> None:
        """Makes the scheduler anew where it was overridden, or the optimizer is another.

        It is then stepped from its start, so that the lr is what it would be had the run begun so.
        One that follows a metric keeps what it has learned, and by how much it has reduced the lr.
        """
        changed, self._changed = self._changed, None
        optimizer: Any = ctx.optimizer
        groups = optimizer.param_groups
        if changed is None and self._optimizer is optimizer:
            if len(groups) != len(self._labels):
                take_in(self.scheduler, groups)
                self._labels = labels("lr", groups)
            return
        self._labels = labels("lr", groups)
        history = changed or self.state_dict()
        self._starts = self._built if changed else starts_of(groups)
        put_back(groups, self._starts)
        self._make_scheduler(optimizer)
        if self._kind != "metric":
            self._count = 0  # the next _advance steps from the start
            return
        fresh = self.scheduler.state_dict()
        self.scheduler.load_state_dict(with_history(history["scheduler"], fresh))
        scale(groups, history, self._starts)

    def _advance(self, ctx: Context, count: int) -> None:
        """Steps until the scheduler was stepped ``count`` times; a metric's one by a new value."""
        if self._count >= count:
            return
        if self._kind == "metric":
            self._count = count
            self._follow(ctx)
        elif self._kind == "timm":  # a function of the count
            self._count = count
            to = self.scheduler.step if self.update_by == "epoch" else self.scheduler.step_update
            to(count)
        elif self._had_update(ctx) and self._count == count - 1:
            self._step_to(count)
        else:
            with warnings.catch_warnings():  # an update that was skipped is no wrong order of calls
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self._step_to(count)

    def _follow(self, ctx: Context) -> None:
        if ctx.storage.get("preview"):  # drawn as if the metric never stood still
            return
        value = self._followed.taken(ctx)
        if value is not None:
            self.scheduler.step(value)
        else:
            self._check_published(ctx, at_end=False)

    def _check_published(self, ctx: Context, *, at_end: bool) -> None:
        """Warns once of a name that was never published; before the end only of a misspelt one."""
        name = str(self.metric)
        group = name.rpartition("/")[0]  # until the end, "val/loss" may come after "train/loss"
        fellows = [one for one in ctx.latest if at_end or one.rpartition("/")[0] == group]
        hint = did_you_mean(name, fellows)
        if name in ctx.latest or ctx.rank != 0 or not (at_end or "did you mean" in hint):
            return
        self._warn(f"no metric {name!r} was published, so the lr follows nothing{hint}")

    def _warn(self, words: str) -> None:
        if words not in self._warned:
            self._warned.add(words)
            log.warning("torch_lr: %s", words)

    def _had_update(self, ctx: Context) -> bool:
        """Whether this process has made an update, which torch's schedulers look for."""
        if self._updates_before is None:
            self._updates_before = ctx.updates
        return ctx.updates > self._updates_before

    def _step_to(self, count: int) -> None:
        end = getattr(self.scheduler, "total_steps", None)
        while self._count < count:
            self._count += 1
            if isinstance(end, int) and self._count >= end:  # torch's jumps up, and then raises
                name, unit = type(self.scheduler).__name__, self.update_by
                self._warn(f"{name} is over after {end} {unit}s; the lr stays what it is")
                continue
            self.scheduler.step()


def scheduler_class(name: str) -> Callable[..., Any]:
    """The class of torch with this name.

    Raises:
        JobError: torch has none, or it is one that is made of others.
    """
    classes = ((found, cls) for found, cls in vars(lr_scheduler).items() if isinstance(cls, type))
    known = {found for found, cls in classes if issubclass(cls, lr_scheduler.LRScheduler)}
    known -= {*_MADE_OF_OTHERS, *_ABSTRACT}
    if name in _MADE_OF_OTHERS:
        raise JobError(
            f"scheduler {name!r} is made of other schedulers; accepted: a function that takes the "
            "optimizer and returns it, such as 'train.py:make_scheduler'"
        )
    if name not in known:
        raise JobError(f"unknown scheduler {name!r}{did_you_mean(name, known)}")
    found: Callable[..., Any] = getattr(lr_scheduler, name)
    return found


def highest_known(group: Mapping[str, Any]) -> float:
    """The greater of what the lr of a group begins with, and its peak if the schedule has one."""
    known = (group.get(key) for key in ("lr", "initial_lr", "max_lr"))
    return max(float(value) for value in known if value is not None)


def plain(value: Any) -> Any:
    """A copy made of plain containers: torch keeps milestones in a ``Counter``."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value


def shaped(value: Any, like: Any) -> Any:
    """Plain containers as the ones of ``like``."""
    if isinstance(value, Mapping) and isinstance(like, Mapping):
        made = {key: shaped(item, like.get(key)) for key, item in value.items()}
        return made if type(like) is dict else type(like)(made)  # type: ignore[call-arg]
    if isinstance(value, list) and isinstance(like, list) and len(value) == len(like):
        return [shaped(item, other) for item, other in zip(value, like, strict=True)]
    return value
