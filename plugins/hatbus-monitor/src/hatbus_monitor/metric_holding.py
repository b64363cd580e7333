"""A metric is counted by one updater at a time; whoever comes second gets a copy.

Two updaters in one object would add up what belongs to two tasks, and the reset of one, or of a
validation inside an epoch, would make the other's value wrong, without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from hatbus.log import log
from hatbus.loop import instance_name

if TYPE_CHECKING:
    from hatbus import Context
    from hatbus_monitor.metric_list import Metric

_holders: Final[WeakValueDictionary[int, Held]] = WeakValueDictionary()
"""``id`` of a metric to who counts in it now; a holder keeps its metrics alive."""


class Held:
    """The metrics that one updater counts in.

    Args:
        owner: the updater.
    """

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._mine: list[Metric] = []
        self._copies: dict[int, tuple[Metric, Metric]] = {}

    def take(
        self, metrics: Mapping[str, Metric], ctx: Context, *, warns: bool
    ) -> dict[str, Metric]:
        """The metrics to count in, by name: the objects themselves, or copies of those in use.

        Args:
            metrics: by name.
            ctx: the run.
            warns: say so; the user gave one object to several updaters.
        """
        self.let_go()
        found = {}
        for name, metric in metrics.items():
            found[name] = self._free(metric)
            if found[name] is not metric and warns and ctx.rank == 0:
                log.warning(
                    "metric_updater %r: metric %r is in use by another updater of the run, so this "
                    "one counts in a copy; give each a metric of its own",
                    instance_name(ctx, self._owner),
                    name,
                )
        self._mine = list(found.values())
        _holders.update({id(metric): self for metric in self._mine})
        return found

    def let_go(self) -> None:
        """Leaves the metrics to others."""
        for metric in self._mine:
            if _holders.get(id(metric)) is self:
                del _holders[id(metric)]
        self._mine = []

    def _free(self, metric: Metric) -> Metric:
        """The metric, or the copy that was made of it before, or a new one if it is in use."""
        if id(metric) in self._copies:
            return self._copies[id(metric)][1]
        if _holders.get(id(metric), self) is self:
            return metric
        twin = copy.deepcopy(metric)
        twin.reset()
        self._copies[id(metric)] = metric, twin  # the first, so that its id stays its own
        return twin
