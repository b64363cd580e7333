"""What a validation without callbacks publishes: the mean of every loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hatbus import hookimpl, plugin
from hatbus.evaluation import LossMeans
from hatbus.log import log
from hatbus.parallel import summed

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus import Context


@plugin(stage="monitor", everywhere=True)
class MeanLosses:
    """Publishes ``<loss>``, or ``<task>/<loss>``: the mean over all samples of all ranks.

    A batch's loss counts as often as the batch has samples; see ``hatbus.evaluation.LossMeans``.
    """

    def __init__(self) -> None:
        self._means = LossMeans()
        self._batches = 0
        self._has_told = False

    def published_names(self, inner: Any) -> list[str]:
        """The losses of the validation, as far as they are known.

        Args:
            inner: with ``losses``, which the validation gives.
        """
        return list(inner.losses)

    @hookimpl
    def on_epoch_begin(self) -> None:
        """Forgets the last validation."""
        self._means.clear()
        self._batches = 0

    @hookimpl
    def on_batch_end(
        self, ctx: Context, losses: dict[str, Tensor], task: str | None, batch: Any
    ) -> None:
        """Adds the batch's losses; they stay on their device."""
        if ctx.exception is None:
            self._means.add(losses, task, batch)
            self._batches += bool(losses)

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Publishes the means."""
        if ctx.exception is not None:
            return
        if not self._batches and not self._has_told and ctx.rank == 0:
            self._has_told = True
            log.warning(
                "validation: the model returned no loss in eval mode, so nothing is published; "
                "give callbacks=[...], such as a metric_updater"
            )
        sums = summed(ctx, self, "epoch") if ctx.world_size > 1 else None
        ctx.log(self._means.means(ctx.world_size, ctx.device, sums))

    def rank_sums(self, ctx: Context, moment: Literal["step", "epoch"]) -> Tensor | None:
        """What is to be added up over all ranks at the end of a validation."""
        return self._means.numbers(ctx.device) if moment == "epoch" else None
