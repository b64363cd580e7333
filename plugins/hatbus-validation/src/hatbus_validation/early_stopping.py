"""``EarlyStopping``: ends the run when a metric has stopped getting better."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from hatbus import hookimpl, plugin
from hatbus.bus import one_number
from hatbus.errors import PluginError, did_you_mean
from hatbus.evaluation import check_published
from hatbus.log import log
from hatbus.loop import Request
from hatbus.option_values import number, one_of, text, whole
from hatbus_validation.validation import Validation

if TYPE_CHECKING:
    from hatbus import Context

MODES: Final = ("min", "max")


@plugin(stage="validate", after=("validation", "mean_teacher_validation"))
class EarlyStopping:
    """Stops the run when ``monitor`` has not improved ``patience`` times in a row.

    The metric is looked at after every validation, and at an epoch's end, if it was published
    since the last look. All of it is saved: a resumed run counts on, and one that was
    stopped here does not start again unless it is given more patience. With another ``monitor`` or
    ``mode`` than the saved one it starts anew, and says so. A metric that is never published is
    refused before the first step where that is certain, and else warned of at the end; at an
    epoch's end where another has almost its name.

    Args:
        monitor: name of a published scalar, such as ``"val/loss"``.
        mode: ``"min"``: smaller is better; ``"max"``: larger is better.
        patience: looks without improvement before the run ends.
        min_delta: how much better a value has to be to count, in the metric's own units.
        check_finite: end the run at once when the metric is NaN or infinite.

    Attributes:
        best: the best value so far; None before the first.
        wait: looks since then.

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        check_finite: bool = True,
    ) -> None:
        text("early_stopping: monitor", monitor)
        one_of("early_stopping: mode", mode, MODES)
        whole("early_stopping: patience", patience, 1)
        number("early_stopping: min_delta", min_delta)
        self.monitor, self.mode = monitor, mode
        self.patience, self.min_delta = patience, min_delta
        self.check_finite = check_finite
        self.best: float | None = None
        self.wait = 0
        self._fresh: Any = None
        self._replaced = ""
        self._validations = 0
        self._warned = False

    @hookimpl(wrapper=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Does not start a resumed run that was stopped here before."""
        if self._replaced and ctx.rank == 0:
            now = f"{self.monitor!r} ({self.mode})"
            what = "early_stopping starts anew: the saved run watched %s, this one watches %s"
            log.warning(what, self._replaced, now)
        self._replaced = ""
        if self.wait >= self.patience:
            reason = f"{self._waited()}; give it more patience to go on"
            log.info("early_stopping: %s", reason)
            ctx.control.stopped = Request("stop run", "early_stopping", reason)
        return (yield)

    def check_watched(self, ctx: Context) -> None:
        """Refuses a metric that nothing in the run publishes.

        Raises:
            JobError: it is so.
        """
        check_published(ctx, "early_stopping: monitor", self.monitor)

    @hookimpl
    def on_log(self, logs: Mapping[str, Any], kind: str) -> None:
        """Keeps the newest value, on its device."""
        if kind == "scalar" and self.monitor in logs:
            self._fresh = logs[self.monitor]

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        """Looks at what the validation published."""
        self._validations += 1
        self._look(ctx)

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Looks at what the epoch published.

        Raises:
            PluginError: every validation has run, and the metric was never published.
        """
        self._look(ctx)
        if not self._is_missing(ctx):
            return
        if any(waits(member.plugin) for member in ctx.bus.members.values()):
            return
        hint = did_you_mean(self.monitor, ctx.latest)
        if self._validations:
            raise PluginError(f"early_stopping: no metric {self.monitor!r} is published{hint}")
        group = self.monitor.rpartition("/")[0]  # "val/loss" may come later than "train/loss"
        fellows = [name for name in ctx.latest if name.rpartition("/")[0] == group]
        if "did you mean" in did_you_mean(self.monitor, fellows):
            self._warn(ctx)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Says that the metric was never published, so that nothing could stop the run."""
        if self._is_missing(ctx):
            self._warn(ctx)

    def state_dict(self) -> dict[str, Any]:
        """What is watched, its best value, how long ago it was, and one not looked at yet."""
        watched = {"monitor": self.monitor, "mode": self.mode}
        return {**watched, "best": self.best, "wait": self.wait, "fresh": self._fresh}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them back, unless something else is watched now."""
        monitor, mode = state.get("monitor", self.monitor), state.get("mode", self.mode)
        if (monitor, mode) != (self.monitor, self.mode):
            self._replaced = f"{monitor!r:.99} ({mode!s:.9})"
            state = {"best": None, "wait": 0}
        self.best, self.wait = state["best"], state["wait"]
        self._fresh = state.get("fresh")

    def _look(self, ctx: Context) -> None:
        fresh, self._fresh = self._fresh, None
        if fresh is None or ctx.exception is not None:
            return
        value = one_number(f"early_stopping: metric {self.monitor!r}", fresh)
        if not math.isfinite(value) and self.check_finite:
            ctx.control.stop("run", f"{self.monitor} is {value}")
        elif improves(value, self.best, self.mode, self.min_delta):
            self.best, self.wait = value, 0
        else:
            self.wait += 1
            if self.wait >= self.patience:
                ctx.control.stop("run", self._waited())

    def _is_missing(self, ctx: Context) -> bool:
        """Whether the metric was not published so far; not where a stop or error cut that short."""
        is_whole = ctx.exception is None and ctx.control.stopped is None
        return is_whole and self.monitor not in ctx.latest

    def _warn(self, ctx: Context) -> None:
        if ctx.rank == 0 and not self._warned:
            hint = did_you_mean(self.monitor, ctx.latest) or "; nothing was published"
            what = "early_stopping: no metric %r was published, so nothing stops the run%s"
            log.warning(what, self.monitor, hint)
        self._warned = True

    def _waited(self) -> str:
        best = "none" if self.best is None else f"{self.best:.6g}"
        return f"{self.monitor} did not improve {self.wait} times in a row (best {best})"


def waits(plugin: object) -> bool:
    """Whether something is a validation that has still to run for the first time."""
    return isinstance(plugin, Validation) and not plugin.is_off and not plugin.validated_at


def improves(value: float, best: float | None, mode: str, min_delta: float) -> bool:
    """Whether a value is better than the best by more than ``min_delta``; NaN never is."""
    if best is None:
        return not math.isnan(value)
    return value < best - min_delta if mode == "min" else value > best + min_delta
