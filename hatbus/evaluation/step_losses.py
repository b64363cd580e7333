"""The losses of a step as the mean over all processes, where somebody shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hatbus.evaluation.loss_means import LossMeans
from hatbus.events.declare import hookimpl
from hatbus.parallel.together import summed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hatbus.bus.bus import Bus
    from hatbus.loop.context import Context
    from hatbus.parallel.together import Moment

NAME: Final = "core.step_losses"
_FOUND: Final = "evaluation.step_losses"


class StepLosses:
    """Has the step's losses averaged over the processes when a plugin wants that.

    Such a plugin has a method ``wants_mean_losses(ctx)``, which is asked on every process, also
    where its events are silent, and gives the same on all. They travel with the step's metrics.
    """

    def __init__(self) -> None:
        self._agreed: list[str] = []
        self._asked: list[Any] = []
        self._freezes = -1

    def join(self, bus: Bus, ctx: Context) -> None:
        """Takes part in a run of several processes."""
        if ctx.world_size > 1 and NAME not in bus.members:
            bus.register(self, NAME, core=True)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Exchanges the losses where they are wanted, before plugins look at them."""
        if ctx.exception is None and self._is_wanted(ctx):
            sums = summed(ctx, self, "step")
            means = self._losses(ctx).means(ctx.world_size, ctx.device, sums)
            ctx.storage[_FOUND] = (ctx.position.global_step, means)

    def rank_sums(self, ctx: Context, moment: Moment) -> Tensor | None:
        """This process's losses of the step, where they are wanted."""
        is_wanted = moment == "step" and self._is_wanted(ctx)
        return self._losses(ctx).numbers(ctx.device) if is_wanted else None

    def _losses(self, ctx: Context) -> LossMeans:
        """Each counts once per process, as its gradient does."""
        found = LossMeans(agreed=self._agreed)
        found.add(ctx.losses, None, None)
        return found

    def _is_wanted(self, ctx: Context) -> bool:
        if self._freezes != ctx.bus.freezes:
            asked = (getattr(m.plugin, "wants_mean_losses", None) for m in ctx.bus.members.values())
            self._asked = [one for one in asked if callable(one)]
            self._freezes = ctx.bus.freezes
        return any(wants(ctx) for wants in self._asked)


def mean_losses(ctx: Context) -> Mapping[str, Tensor]:
    """The step's losses, the mean over the processes that have them; for ``on_step_end``.

    Args:
        ctx: of the training.

    Returns:
        Name to 0-d loss, as ``ctx.losses`` has them; empty in a step of several processes in which
        no plugin's ``wants_mean_losses(ctx)`` was true.
    """
    if ctx.world_size == 1:
        return ctx.losses
    step, found = ctx.storage.get(_FOUND, (-1, {}))
    means: Mapping[str, Tensor] = found if step == ctx.position.global_step else {}
    return means
