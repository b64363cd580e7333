"""``OptunaPruning``: reports a metric to a trial of Optuna, and stops the run when it is pruned."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from hatbus import hookimpl, plugin
from hatbus.bus import one_number
from hatbus.errors import JobError, did_you_mean
from hatbus.evaluation import check_published
from hatbus.option_values import one_of, text

if TYPE_CHECKING:
    from hatbus import Context


class Given(NamedTuple):
    """A trial, and the plugin that a job builds for it."""

    trial: Any
    plugins: list[OptunaPruning]


TRIAL: Final[ContextVar[Given | None]] = ContextVar("the trial that run_trial runs", default=None)


@plugin(stage="validate", ranks="zero", after=("validation", "mean_teacher_validation"))
class OptunaPruning:
    """Reports a metric to a trial after validations and epochs, and ends the run if it is pruned.

    The steps of the reports are those of the run. What is reported again after a resume counts
    once. With several processes rank 0 reports, and all stop together.

    Args:
        metric: name of a published number, such as ``"val/accuracy"``.
        trial: an ``optuna.Trial``; None: that of ``hatbus_optuna.run_trial``.
        value: what the trial gets in the end: the ``"best"`` that was reported, by the study's
            direction, or the ``"last"``.

    Attributes:
        best: the best value that was reported; None before the first.
        last: the last one.
        is_pruned: whether Optuna ended the run.

    Raises:
        JobError: a value that is not accepted, or there is no trial.
    """

    def __init__(
        self, metric: str, trial: Any = None, value: Literal["best", "last"] = "best"
    ) -> None:
        text("optuna_pruning: metric", metric)
        one_of("optuna_pruning: value", value, ("best", "last"))
        given = TRIAL.get()
        if trial is None and given is not None:
            trial = given.trial
            given.plugins.append(self)
        self.trial = trial
        if not hasattr(self.trial, "should_prune"):
            what = "there is no trial" if self.trial is None else f"trial is {self.trial!r:.80}"
            raise JobError(
                f"optuna_pruning: {what}; accepted: the optuna.Trial that the objective gets, as "
                "OptunaPruning(metric, trial), or hatbus_optuna.run_trial(trial, job, metric)"
            )
        self.metric, self.kind = metric, value
        self.best: float | None = None
        self.last: float | None = None
        self.is_pruned = False
        self._fresh: Any = None

    def check_watched(self, ctx: Context) -> None:
        """Refuses a metric that nothing in the run publishes.

        Raises:
            JobError: it is so.
        """
        check_published(ctx, "optuna_pruning: metric", self.metric)

    @hookimpl
    def on_log(self, logs: Mapping[str, Any], kind: str) -> None:
        """Keeps the newest value, on its device."""
        if kind == "scalar" and self.metric in logs:
            self._fresh = logs[self.metric]

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        """Reports what the validation published."""
        self._report(ctx)

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Reports what the epoch published."""
        self._report(ctx)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Reports what was published since."""
        self._report(ctx)
        self._known = list(ctx.latest)

    def result(self) -> float:
        """The trial's value, for the objective to return.

        Raises:
            optuna.TrialPruned: Optuna ended the run.
            JobError: the metric was never published.
        """
        from optuna import TrialPruned

        if self.is_pruned:
            raise TrialPruned(f"{self.metric} {self.last}")
        found = self.best if self.kind == "best" else self.last
        if found is None:
            hint = did_you_mean(self.metric, getattr(self, "_known", ()))
            raise JobError(f"optuna_pruning: no metric {self.metric!r} was published{hint}")
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was reported, for a trial that is killed and goes on."""
        return {"best": self.best, "last": self.last, "is_pruned": self.is_pruned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it back."""
        self.best, self.last = state["best"], state["last"]
        self.is_pruned = state["is_pruned"]

    def _report(self, ctx: Context) -> None:
        value, self._fresh = self._fresh, None
        if value is None or ctx.exception is not None or self.is_pruned:
            return
        self.last = found = one_number(f"optuna_pruning: metric {self.metric!r}", value)
        self.best = self._better(found)
        with warnings.catch_warnings():  # of a step that was reported before the run was killed
            warnings.filterwarnings("ignore", message=".*already reported")
            self.trial.report(found, ctx.position.global_step)
        if self.trial.should_prune():
            self.is_pruned = True
            ctx.control.save("pruned")
            ctx.control.stop("run", f"pruned by Optuna: {self.metric} is {found:.6g}")

    def _better(self, found: float) -> float:
        if self.best is None or math.isnan(self.best):
            return found
        if math.isnan(found):
            return self.best
        is_max = getattr(self.trial.study.direction, "name", "MINIMIZE") == "MAXIMIZE"
        return max(self.best, found) if is_max else min(self.best, found)
