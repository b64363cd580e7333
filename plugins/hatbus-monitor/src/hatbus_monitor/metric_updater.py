"""``MetricUpdater``: updates, publishes, stores and resets metrics.

Source: ``hat.callbacks.MetricUpdater``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import torch

from hatbus import hookimpl, plugin
from hatbus.errors import PluginError
from hatbus.log import log
from hatbus.loop import is_cut_short
from hatbus.option_values import one_of, text
from hatbus.parallel import summed
from hatbus_monitor.every import NEVER, check_interval, interval, is_due
from hatbus_monitor.metric_calls import read_filter, wanted_extras
from hatbus_monitor.metric_holding import Held
from hatbus_monitor.metric_list import KNOWN, Metric, move, named_metrics
from hatbus_monitor.metric_prefix import free_prefix, usual_prefix
from hatbus_monitor.metric_state import copied, lasting_state, restore, state_of
from hatbus_monitor.metric_values import Shown, has_get, results
from hatbus_monitor.metrics import Accuracy, LossShow, Mean, means_of, sums_of
from hatbus_monitor.update_functions import usual

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus import Context

RESETS: Final = ("step", "log", "epoch")
FREQS: Final = ("step_log_freq", "epoch_log_freq", "step_storage_freq", "epoch_storage_freq")
ONLY_LOSSES: Final = ("losses",)
OWN_KINDS: Final = (Mean, Accuracy, LossShow)


@plugin(stage="monitor", everywhere=True)
class MetricUpdater:
    """Updates metrics with every batch, and publishes them at their intervals.

    Published as ``train/<metric>``; bound to one task, ``train/<task>/<metric>``. In a run without
    optimizer (a validation) there is no ``train/``. ``log_prefix`` takes the place of all that. Of
    two instances that would publish one name, the later one puts its instance name before it.

    A metric is counted by one updater: another that is given the same object while that one runs,
    also one in a validation, counts in a copy of its own.

    Args:
        metric_update_func: gets ``(metrics, batch, model_outs)`` and updates the metrics; by name
            also ``losses``, ``task`` or ``ctx``. The default gives a mean the loss of its name, any
            other metric outputs and target; more in ``hatbus_monitor.update_functions``.
        metrics: metric objects (``update``, ``reset`` and ``compute``, or ``get`` as HAT's;
            torchmetrics or any other), words such as ``"accuracy"`` or ``"loss"``, or tables with
            ``type``; a sequence, or a mapping from names. None: the trainer's ``train_metrics``.
        filter_condition: a function of ``batch``, ``model_outs`` and ``task``, or some of them, by
            these names in any order; with other names ``(batch, model_outs)``. A batch for which it
            is false is left out. ``tasks = [...]`` of the job does the same by task, at no cost.
        step_log_freq: publish every so many steps, and from 2 on write a line to the log too;
            < 1: never. A validation over several ranks publishes its end alone, if that is due.
        reset_metrics_by: ``"epoch"``: at an epoch's begin; ``"log"``: after publishing;
            ``"step"``: after every step.
        epoch_log_freq: publish every so many epochs, at their end; only if reset by epoch. Not of
            an epoch that a stop of the run cut short: the resumed run does that.
        log_prefix: in front of the names, in place of ``train/``.
        step_storage_freq: every so many steps append the values to ``ctx.storage[storage_key]``;
            < 1: never.
        epoch_storage_freq: the same in epochs, at their end. Reset by step or log, the values are
            those before the last reset.
        storage_key: where they are stored: a list of
            ``{"epoch_id": ..., "global_step_id": ..., name: value, ...}``; instances with one key
            add to one list.

    Attributes:
        metrics: what it counts in, by name.
        name_prefix: what its published names begin with, once the run has begun.

    Raises:
        JobError: a value that is not accepted.
        PluginError: something that is no metric, or no function for them.
    """

    rank_state = ("metrics", "updates")
    config_types: ClassVar[Mapping[str, Any]] = KNOWN

    def __init__(
        self,
        metric_update_func: Callable[..., Any] = usual,
        metrics: Sequence[Any] | Mapping[str, Any] | None = None,
        filter_condition: Callable[..., Any] | None = None,
        step_log_freq: int | None = 1,
        reset_metrics_by: str | None = "epoch",
        epoch_log_freq: int | None = 1,
        log_prefix: str | None = "",
        step_storage_freq: int | None = -1,
        epoch_storage_freq: int | None = -1,
        storage_key: str | None = "monitor_obj",
    ) -> None:
        reset_metrics_by = reset_metrics_by or "epoch"
        one_of("metric_updater: reset_metrics_by", reset_metrics_by, RESETS)
        freqs = (step_log_freq, epoch_log_freq, step_storage_freq, epoch_storage_freq)
        for name, freq in zip(FREQS, freqs, strict=True):
            check_interval(f"metric_updater: {name}", freq)
        for name, words in (("log_prefix", log_prefix), ("storage_key", storage_key)):
            if words:
                text(f"metric_updater: {name}", words)
        self.metric_update_func = metric_update_func
        self.filter_condition = filter_condition
        self._takes = None if filter_condition is None else read_filter(filter_condition)
        self.step_log_freq, self.epoch_log_freq = step_log_freq, epoch_log_freq
        self.step_storage_freq, self.epoch_storage_freq = step_storage_freq, epoch_storage_freq
        self.reset_metrics_by = reset_metrics_by
        self._resets_by_step = reset_metrics_by == "step"
        self.log_prefix = log_prefix or ""
        self.storage_key = storage_key or "monitor_obj"
        self.metrics: dict[str, Metric] = {} if metrics is None else named_metrics(metrics)
        self._extra = wanted_extras(metric_update_func)
        self._given: Any = metrics
        self.name_prefix = ""
        self._held = Held(self)
        self._own: tuple[tuple[str, Any], ...] = ()
        self._log_every = self._store_every = NEVER
        self._updates = 0
        self._is_in_validation = False
        self._published_at: int | None = None
        self._stored: list[dict[str, Any]] = []
        self._before_reset: dict[str, Any] = {}

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Finds the metrics, moves them to the device, settles their names."""
        self._is_in_validation = ctx.optimizer is None
        found = named_metrics(self._metrics_of_run(ctx)) if self._given is None else self.metrics
        self.metrics = self._held.take(found, ctx, warns=self._given is not None)
        move(self.metrics.values(), ctx.device)
        is_named = isinstance(self._given, Mapping)
        self._argument: Any = self.metrics if is_named else list(self.metrics.values())
        self._detaches = all(map(holds_no_graph, self.metrics.values()))
        self.name_prefix = free_prefix(self, ctx)
        self._own = tuple(
            (f"{self.name_prefix}{name}", metric)
            for name, metric in self.metrics.items()
            if type(metric) in OWN_KINDS
        )
        self._are_own = len(self._own) == len(self.metrics)
        self._log_every = NEVER if self._leaves_it_to_the_end(ctx) else interval(self.step_log_freq)
        self._store_every = interval(self.step_storage_freq)
        self._says_at = logging.INFO if (self.step_log_freq or 0) > 1 else logging.DEBUG
        self._says_steps = log.isEnabledFor(self._says_at) and ctx.rank == 0
        if ctx.position.global_step == 0:
            self._reset()
            self._stored, self._published_at = [], None
        self._stored = shared_rows(ctx, self.storage_key, self._stored)

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Resets (mode epoch), unless the run goes on inside an epoch."""
        if self.reset_metrics_by == "epoch" and ctx.step_id == 0:
            self._reset()
        self._before_reset = {}

    @hookimpl
    def on_batch_end(
        self,
        batch: Any,
        model_outs: Any,
        train_metrics: Any = None,
        ctx: Context | None = None,
        **_more: Any,
    ) -> None:
        """Updates the metrics with one batch.

        Outside a run, without ``ctx``: those that it was given, else ``train_metrics``.
        """
        if ctx is None:
            self._update_alone(batch, model_outs, train_metrics, _more)
            return
        if ctx.exception is not None:
            return
        if self._takes is not None and not self._takes(batch, model_outs, ctx.task):
            return
        self._updates += 1
        if not self._detaches:
            with torch.no_grad():  # a metric of the user's own must not hold on to the graph
                self._update(ctx, batch, model_outs)
        elif self._extra == ONLY_LOSSES:  # the usual case, without a further call
            self.metric_update_func(self._argument, batch, model_outs, losses=ctx.losses)
        else:
            self._update(ctx, batch, model_outs)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Stores, publishes and resets where that is due."""
        done = ctx.global_step_id + 1
        stores, logs = not done % self._store_every, not done % self._log_every
        if (stores or logs) and ctx.exception is None:
            self._at_step(ctx, stores=stores, logs=logs)
        if self._resets_by_step or (logs and self.reset_metrics_by == "log"):
            if (self.epoch_storage_freq or 0) > 0 and ctx.exception is None:
                self._before_reset = self._compute(ctx, "step")
            self._reset()

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Stores and publishes the epoch's values where that is due."""
        if ctx.exception is not None or is_cut_short(ctx):
            return
        epoch, is_whole = ctx.epoch_id, self.reset_metrics_by == "epoch"
        stores = is_due(self.epoch_storage_freq, epoch)
        logs = is_whole and is_due(self.epoch_log_freq, epoch)
        values = self._compute(ctx, "epoch") if stores or logs else {}
        if stores:
            self._store(ctx, values or self._before_reset)
        if logs and values:
            if self._published_at != ctx.global_step_id:  # else the last step has just said so
                ctx.log(values)
            # A validation says what it found itself.
            level = logging.INFO if ctx.rank == 0 and ctx.optimizer is not None else logging.DEBUG
            log.log(level, "epoch %d: %s", epoch + 1, Shown(values))

    @hookimpl
    def on_loop_end(self) -> None:
        """Leaves its metrics to others."""
        self._held.let_go()

    def _at_step(self, ctx: Context, *, stores: bool, logs: bool) -> None:
        values = self._compute(ctx, "step")
        if stores:
            self._store(ctx, values)
        if logs and values:
            ctx.log(values)
            self._published_at = ctx.global_step_id
            if self._says_steps:
                log.log(self._says_at, "step %d: %s", ctx.global_step_id + 1, Shown(values))

    def rank_sums(self, ctx: Context, moment: Literal["step", "epoch"]) -> Tensor | None:
        """What is to be added up over all ranks, where values are due at this moment."""
        return sums_of(self._own, self._updates) if self._is_due(ctx, moment) else None

    def _is_due(self, ctx: Context, moment: Literal["step", "epoch"]) -> bool:
        """Whether values are published or stored at the end of the present step or epoch."""
        if moment == "epoch":
            freqs = [self.epoch_storage_freq]
            freqs += [self.epoch_log_freq] * (self.reset_metrics_by == "epoch")
            return any(is_due(freq, ctx.epoch_id) for freq in freqs) and not is_cut_short(ctx)
        done = ctx.global_step_id + 1
        logs = not done % self._log_every
        resets = self._resets_by_step or (logs and self.reset_metrics_by == "log")
        keeps = resets and (self.epoch_storage_freq or 0) > 0
        return logs or keeps or not done % self._store_every

    def published_names(self, ctx: Any) -> list[str]:
        """What it is going to publish, as far as can be known before; for those that look for it.

        Args:
            ctx: of the run that it is in, or anything with its ``bus`` and ``optimizer``.
        """
        start = self.name_prefix or usual_prefix(self, ctx)
        if "ctx" in self._extra:  # the function may publish by itself
            return ["*"]
        found = self.metrics
        if self._given is None and not found:
            given = ctx.train_metrics if ctx.optimizer is not None else ctx.val_metrics
            found = named_metrics(given) if given else {}
        names = [f"{start}{name}" for name, one in found.items() if not has_get(one)]
        foreign = {n: one for n, one in found.items() if type(one) not in OWN_KINDS}
        return [*names, *(f"{start}{'' if has_get(one) else n}*" for n, one in foreign.items())]

    def state_dict(self) -> dict[str, Any]:
        """The accumulators, rows stored under the key, the step last published.

        Of a validation that is over, what lasts till the next one.
        """
        read = lasting_state if self._is_in_validation else state_of
        found = {name: read(metric) for name, metric in self.metrics.items()}
        return {
            "metrics": {name: state for name, state in found.items() if state is not None},
            "is_partial": self._is_in_validation,
            "updates": self._updates,
            "stored": copied(self._stored),
            "published_at": self._published_at,
            "before_reset": copied(self._before_reset),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the accumulators back; a metric or process not there then starts anew."""
        if "metrics" in state:
            self._take_back(state["metrics"], is_partial=state.get("is_partial", False))
            self._updates = state["updates"]
        else:
            self._reset()
        self._stored[:] = copied(state["stored"])
        self._published_at = state.get("published_at")
        self._before_reset = copied(state.get("before_reset", {}))

    def _take_back(self, saved: Mapping[str, Any], *, is_partial: bool) -> None:
        for name, metric in self.metrics.items():
            if name in saved:
                restore(metric, saved[name])
            elif not is_partial:
                log.warning("metric %r is not in the checkpoint; it starts anew", name)

    def _leaves_it_to_the_end(self, ctx: Context) -> bool:
        """Whether ranks must not meet in a step: they may have unlike numbers of batches."""
        is_shared_validation = ctx.world_size > 1 and ctx.optimizer is None
        is_said_at_the_end = self.reset_metrics_by == "epoch" and self.epoch_log_freq == 1
        return is_shared_validation and is_said_at_the_end

    def _metrics_of_run(self, ctx: Context) -> Any:
        found = ctx.train_metrics if ctx.optimizer is not None else ctx.val_metrics
        if not found:
            raise PluginError(
                "metric_updater: there are no metrics; give metrics=[...], or train_metrics=[...] "
                "to the trainer"
            )
        return found

    def _update_alone(
        self, batch: Any, model_outs: Any, train_metrics: Any, more: Mapping[str, Any]
    ) -> None:
        """Updates as the page writes it, without a run."""
        if self._takes is not None and not self._takes(batch, model_outs, more.get("task")):
            return
        metrics = self.metrics or named_metrics(train_metrics or ())
        is_named = isinstance(self._given, Mapping)
        wanted = {name: more.get(name) for name in self._extra}
        with torch.no_grad():
            self.metric_update_func(
                metrics if is_named else [*metrics.values()], batch, model_outs, **wanted
            )

    def _update(self, ctx: Context, batch: Any, model_outs: Any) -> None:
        wanted = {name: ctx if name == "ctx" else getattr(ctx, name) for name in self._extra}
        self.metric_update_func(self._argument, batch, model_outs, **wanted)

    def _compute(self, ctx: Context, moment: Literal["step", "epoch"]) -> dict[str, Any]:
        """Name to value; empty when nothing was added, on any rank."""
        own: dict[str, Any] = {}
        if ctx.world_size > 1:
            sums = summed(ctx, self, moment)
            if not self._updates and not sums[0].item():
                return {}
            own = means_of(self._own, sums)
        elif not self._updates:
            return {}
        else:  # each value is a new 0-d tensor without a graph
            own = {name: metric.compute() for name, metric in self._own}
        return own if self._are_own else self._with_foreign(own)

    @torch.no_grad()
    def _with_foreign(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """All values in order, also of metrics that are not ours; those exchange by themselves."""
        found: dict[str, Any] = {}
        for key, metric in self.metrics.items():
            name = f"{self.name_prefix}{key}"
            if name in own and type(metric) in OWN_KINDS:
                found[name] = own[name]
            else:
                found |= {f"{self.name_prefix}{n}": v for n, v in results(key, metric)}
        return found

    def _store(self, ctx: Context, values: dict[str, Any]) -> None:
        ids = {"epoch_id": ctx.epoch_id, "global_step_id": ctx.global_step_id}
        self._stored.append({**ids, **values})

    def _reset(self) -> None:
        for metric in self.metrics.values():
            if getattr(type(metric), "n_steps", None) is None or metric.n_steps:  # type: ignore[attr-defined]  # as just asked
                metric.reset()  # a tracker that has no step as yet cannot be
        self._updates = 0


def shared_rows(ctx: Context, key: str, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The list of all instances that store under a key; empty as yet, it takes a resume's rows."""
    rows: list[dict[str, Any]] = ctx.storage.setdefault(key, [])
    if not rows:
        rows += own
    return rows


def holds_no_graph(metric: object) -> bool:
    """Whether a metric is known to detach what it is given: ours, and those of torchmetrics."""
    return isinstance(metric, Mean) or any(
        hasattr(metric, name) for name in ("metric_state", "compute_groups")
    )
