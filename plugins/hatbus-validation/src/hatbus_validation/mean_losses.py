"""What a validation without callbacks publishes: the mean of every loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from hatbus import hookimpl, plugin
from hatbus.data import samples_in
from hatbus.log import log

if TYPE_CHECKING:
    from hatbus import Context


@plugin(stage="monitor")
class MeanLosses:
    """Publishes ``<loss>``, or ``<task>/<loss>``: the mean over all samples of all ranks.

    A batch's loss counts as often as the batch has samples, which is exact for losses that are a
    mean over the batch. A batch in which nothing has a length counts as one sample, an empty one
    (every sample was dropped) not at all; a loss of no sample is not published.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._has_told = False

    @hookimpl
    def on_epoch_begin(self) -> None:
        """Forgets the last validation."""
        self._sums, self._counts = {}, {}

    @hookimpl
    def on_batch_end(
        self, ctx: Context, losses: dict[str, Tensor], task: str | None, batch: Any
    ) -> None:
        """Adds the batch's losses; they stay on their device."""
        if ctx.exception is not None:
            return
        found = samples_in(batch)
        size = 1 if found is None else found
        for loss, value in losses.items():
            name = loss if task is None else f"{task}/{loss}"
            if name not in self._sums:
                self._sums[name] = torch.zeros((), dtype=torch.float64, device=value.device)
                self._counts[name] = 0
            if size:  # the mean over no sample is NaN, also when it counts 0 times
                self._sums[name].add_(value, alpha=size)
            self._counts[name] += size

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Publishes the means."""
        if not self._sums and not self._has_told and ctx.exception is None and ctx.rank == 0:
            self._has_told = True
            log.warning(
                "validation: the model returned no loss in eval mode, so nothing is published; "
                "give callbacks=[...], such as a metric_updater"
            )
        if ctx.exception is not None:
            return
        if ctx.world_size == 1:
            ctx.log({n: s / self._counts[n] for n, s in self._sums.items() if self._counts[n]})
        else:
            ctx.log(self._means_of_all_ranks(ctx))

    def _means_of_all_ranks(self, ctx: Context) -> dict[str, Tensor]:
        """The means; sums and counts are added up over the ranks, never means.

        A rank may have met losses that another has not.
        """
        met: list[list[str]] = [[] for _ in range(ctx.world_size)]
        distributed.all_gather_object(met, list(self._sums))
        names = list(dict.fromkeys(name for mine in met for name in mine))
        if not names:
            return {}
        zero = torch.zeros((), dtype=torch.float64, device=ctx.device)
        sums = torch.stack([self._sums.get(name, zero) for name in names])
        both = torch.stack([sums, sums.new_tensor([self._counts.get(n, 0) for n in names])])
        distributed.all_reduce(both)
        counts = both[1].tolist()
        means = zip(names, both[0] / both[1], counts, strict=True)
        return {name: mean for name, mean, count in means if count}
