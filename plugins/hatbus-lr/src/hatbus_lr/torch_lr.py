"""Any scheduler of ``torch.optim.lr_scheduler`` as a plugin."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch.optim import lr_scheduler

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, did_you_mean
from hatbus.option_values import UNITS, one_of, whole
from hatbus_lr.field import labels

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatbus.loop import Context

_MADE_OF_OTHERS: Final = ("SequentialLR", "ChainedScheduler")
_ABSTRACT: Final = ("LRScheduler", "_LRScheduler")


@plugin(stage="schedule", writes="optimizer.lr")
class TorchLr:
    """Steps a scheduler of torch once per step or once per epoch, and saves and restores it.

    The scheduler's own count is ``global_step_id`` or ``epoch_id``: a skipped update counts, as it
    does for hatbus's own updaters.

    Args:
        scheduler: the name of a class in ``torch.optim.lr_scheduler``; or a class or function that
            is called with the optimizer (in a job ``"train.py:make_scheduler"``), for
            ``SequentialLR`` and your own.
        arguments: keyword arguments of the class, without the optimizer.
        update_by: ``"step"`` or ``"epoch"``.
        step_log_interval: log every so many steps; None for never.
        metric: published name whose last value is given to ``step``, for ``ReduceLROnPlateau``.

    Raises:
        JobError: a value that is not accepted; at loop begin: the scheduler refuses its arguments.
    """

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
        if (self._make is lr_scheduler.ReduceLROnPlateau) != (metric is not None):
            raise JobError(
                f"metric is {metric!r}; accepted: a published name such as 'val/loss' with "
                "ReduceLROnPlateau, and None with every other scheduler"
            )
        self.arguments = dict(arguments or {})
        self.update_by, self.metric = update_by, metric
        self.step_log_interval = step_log_interval
        self.scheduler: Any = None
        self._labels: tuple[str, ...] = ()
        self._count = 0
        self._updates_before: int | None = None
        self._restored: Mapping[str, Any] | None = None

    @hookimpl
    def on_loop_begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Builds the scheduler; a second ``fit`` goes on with the one it has."""
        if self.scheduler is None:
            try:
                self.scheduler = self._make(optimizer, **self.arguments)
            except (TypeError, ValueError) as error:
                name = getattr(self._make, "__name__", repr(self._make))
                raise JobError(f"torch's {name} refuses its arguments: {error}") from error
        if self._restored is not None:
            self.load_state_dict(self._restored)
        self._labels = labels("lr", optimizer.param_groups)

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Steps the scheduler up to this epoch."""
        if self.update_by == "epoch":
            self._advance(ctx, ctx.epoch_id)

    @hookimpl
    def on_step_begin(self, ctx: Context, optimizer: torch.optim.Optimizer) -> None:
        """Steps the scheduler up to this step, and logs."""
        step = ctx.global_step_id
        if self.update_by == "step":
            self._advance(ctx, step)
        if self.step_log_interval is not None and (step + 1) % self.step_log_interval == 0:
            groups = optimizer.param_groups
            if len(groups) != len(self._labels):
                self._labels = labels("lr", groups)
            values = (float(group["lr"]) for group in groups)
            ctx.log(dict(zip(self._labels, values, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """The count and the scheduler's state, as plain containers."""
        if self.scheduler is None:
            return {}
        return {"count": self._count, "scheduler": plain(self.scheduler.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the scheduler, now or as soon as there is one."""
        if self.scheduler is None:
            self._restored = state
        elif state:
            self._restored, self._count = None, state["count"]
            self.scheduler.load_state_dict(shaped(state["scheduler"], self.scheduler.state_dict()))

    def _advance(self, ctx: Context, count: int) -> None:
        """Steps until the scheduler was stepped ``count`` times; a metric's one only once."""
        if self._count >= count:
            return
        if self.metric is not None:
            if not ctx.storage.get("preview"):  # drawn as if the metric never stood still
                self.scheduler.step(metric_value(ctx, self.metric))
            self._count = count
            return
        if self._had_update(ctx):
            self._step_to(count)
            return
        with warnings.catch_warnings():  # an update that was skipped is no wrong order of calls
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._step_to(count)

    def _had_update(self, ctx: Context) -> bool:
        """Whether this process has made an update, which torch's schedulers look for."""
        if self._updates_before is None:
            self._updates_before = ctx.updates
        return ctx.updates > self._updates_before

    def _step_to(self, count: int) -> None:
        while self._count < count:
            self.scheduler.step()
            self._count += 1


def metric_value(ctx: Context, name: str) -> float:
    """The last published value of a name.

    Raises:
        JobError: nothing was published under it so far.
    """
    if name not in ctx.latest:
        raise JobError(
            f"metric {name!r} was not published before step {ctx.position.global_step}"
            f"{did_you_mean(name, ctx.latest)} (update_by='epoch' waits for an epoch's end)"
        )
    return float(ctx.latest[name])


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
