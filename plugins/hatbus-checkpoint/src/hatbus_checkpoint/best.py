"""Which checkpoint is best, by a published metric or by a metric object."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError, did_you_mean
from hatbus.evaluation import check_published
from hatbus.log import log
from hatbus.option_values import one_of
from hatbus_checkpoint.judged import Judged, single

if TYPE_CHECKING:
    from hatbus.loop import Context

MODES: Final = ("min", "max")


_SLIP: Final = 0.8
"""How alike two words are of which one is a slip: "val/sge" and "val/seg", not "val/det"."""


class Best:
    """Follows one value; ties and NaN do not win.

    Args:
        mode: ``"min"`` or ``"max"``; None: there is no best.
        key: name of a published value (``ctx.log``).
        metric: an object with ``compute()`` (torchmetrics) or ``get()`` (HAT), or a config of one;
            see ``hatbus_checkpoint.judged`` for what goes together.
        what: plugin and option, to begin messages with.

    Attributes:
        value: the best so far; None before there is one.
        replaced: what the state that was loaded went by, when that is not what this one goes by.

    Raises:
        JobError: the three do not go together.
    """

    def __init__(
        self, mode: str | None, key: str | None, metric: Any, what: str = "checkpoint"
    ) -> None:
        if mode is not None:
            one_of("checkpoint: mode", mode, MODES)
        self.judged, self._what = Judged(key, metric), what
        if mode is None and (key is not None or metric is not None):
            raise JobError(
                "checkpoint: mode ('min' or 'max') is missing; give mode and monitor_metric_key "
                "together"
            )
        self.mode, self.key = mode, key
        self.value: float | None = None
        self.replaced = ""
        self._is_fresh = not self.judged.is_published
        self._warned = False

    @property
    def label(self) -> str:
        """What the value is called."""
        return self.judged.label

    def state(self) -> dict[str, Any]:
        """The best value, and what it is of."""
        return {"best": self.value, "metric": self.label, "mode": self.mode}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on comparing; anew when the saved value is of another metric or mode."""
        metric, mode = state.get("metric", self.label), state.get("mode", self.mode)
        is_same = (metric, mode) == (self.label, self.mode)
        self.value = state["best"] if is_same else None
        self._is_fresh = not self.judged.is_published
        if not is_same and state["best"] is not None and self.mode is not None:
            self.replaced = f"{metric!r:.99} ({mode!s:.9})"

    def tell_replaced(self, warn: Callable[..., None]) -> None:
        """Says after a resume that the best is another from now on."""
        if self.replaced:
            now = f"{self.label!r} ({self.mode})"
            what = (
                "the best checkpoint starts anew: it was by %s in the saved run, is by %s in this"
            )
            warn(what, self.replaced, now)
            self.replaced = ""

    def check_watched(self, ctx: Context) -> None:
        """Refuses a key that nothing in the run publishes; a metric object knows its own.

        Raises:
            JobError: it is so.
        """
        if self.key is not None and self.judged.metric is None:
            name = f"{self._what}{'.' if ':' in self._what else ': '}monitor_metric_key"
            check_published(ctx, name, self.key, bare=True)

    def hear(self, names: Iterable[str]) -> None:
        """Takes note of what is published: a value counts for one save, the first after it."""
        self._is_fresh = self._is_fresh or self.judged.is_among(names)

    def weigh(self, ctx: Context) -> tuple[dict[str, Any] | None, bool]:
        """What a save says of the value, and whether it is the best so far, as it is from now on.

        Only a value that is new since the save before can be: else it is of other weights.
        """
        value, is_fresh = self.current(ctx), self._is_fresh
        self._is_fresh = not self.judged.is_published
        if value is None:
            return None, False
        is_best = is_fresh and self.wins(value)
        if is_best:
            self.value = value
        return {"metric": self.label, "mode": self.mode, "value": value, "fresh": is_fresh}, is_best

    def current(self, ctx: Context) -> float | None:
        """The value now; None when there is none, or it is NaN or infinite."""
        if self.mode is None:
            return None
        found = self.judged.value(ctx)
        if found is None and self.key and not self._warned and self._has_fellows(ctx.latest):
            self._warned = True
            self._warn(ctx.latest)
        if found is None or not math.isfinite(found):
            return None
        return found

    def wins(self, value: float) -> bool:
        """Whether a value is better than the best."""
        if self.value is None:
            return True
        return value < self.value if self.mode == "min" else value > self.value

    def look_back(self, ctx: Context) -> None:
        """Says at a run's end that the value was never published.

        Not of a run that was stopped before anything of its kind was.
        """
        over = ctx.control.stopped is None or self._has_fellows(ctx.latest)
        if self.key is not None and self.judged.value(ctx) is None and over:
            self._warn(ctx.latest)

    def _has_fellows(self, latest: Mapping[str, Any]) -> bool:
        """Whether another ``val/...`` is there: then ``val/accuracy`` could be there as well.

        Beside ``val/seg/...`` so could ``val/seg/iou``, and ``val/sge/iou`` if it is a slip.
        """
        group, _, last = str(self.key).rpartition("/")
        if not group or any(name.startswith(f"{group}/") for name in latest):
            return bool(group)
        groups = [name.rpartition("/")[0] for name in latest]
        alike = get_close_matches(group, groups, cutoff=_SLIP)
        return any(f"{one}/{last}" in latest for one in alike)

    def _warn(self, latest: Mapping[str, Any]) -> None:
        log.warning(
            "no metric %r was published, so no checkpoint is best%s",
            self.key,
            did_you_mean(str(self.key), single(latest)) or "; nothing was published",
        )
