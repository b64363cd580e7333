"""What a run publishes of its own: the mean of every training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hatbus.evaluation.loss_means import LossMeans
from hatbus.evaluation.step_losses import StepLosses
from hatbus.evaluation.watched import (
    check_watched,
    expected_losses,
    note_losses,
    published_names,
)
from hatbus.events.declare import hookimpl
from hatbus.loop.loop import is_cut_short
from hatbus.option_values import whole
from hatbus.parallel.together import summed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hatbus.bus.bus import Bus
    from hatbus.loop.context import Context
    from hatbus.parallel.together import Moment

NAME: Final = "core.train_loss"
EVERY: Final = 50
"""Steps between two points of ``train/<loss>_step``."""
_FIRST: Final = "train/"
STEP: Final = "_step"
"""What the name of a mean over some steps ends with; that over an epoch ends with nothing."""
_LOSS: Final = "loss"


class TrainLoss:
    """Publishes ``train/<loss>`` at every epoch's end, and ``train/<loss>_step`` every so often.

    With tasks they are ``train/<task>/<loss>``. Of several losses there is their sum too, as
    ``train/loss``, unless one has that name. The first is the mean over the epoch, the second
    that over the steps since it was last published, both over all samples and ranks. A name that a
    plugin publishes is left to it.

    Args:
        every: steps between two means over some steps; 0: none.
        only_finite: leave out losses that are NaN or infinite, whose steps are skipped.

    Raises:
        JobError: no whole number.
    """

    rank_state = ("epoch", "recent")

    def __init__(self, every: int, *, only_finite: bool) -> None:
        whole("log_every", every, 0)
        self._every = every
        self._agreed: list[str] = []
        self._epoch = LossMeans(only_finite=only_finite)
        self._recent = LossMeans(only_finite=only_finite, agreed=self._agreed)
        self._step_losses = StepLosses()
        self._others: dict[str | None, set[str]] = {}
        self._mine: dict[str, Any] = {}
        self._is_checked = False

    def join(self, bus: Bus, ctx: Context) -> None:
        """Takes part in a run if anybody would see what it publishes, the same on all ranks.

        Whoever looks into the run's folder does; plugins of the first rank alone are not known of
        on the others.
        """
        is_seen = ctx.world_size > 1 or ctx.run_dir is not None
        if NAME not in bus.members and (is_seen or bus.implementations("on_log")):
            bus.register(self, NAME, core=True)
        self._step_losses.join(bus, ctx)

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Leaves to plugins what they say that they publish."""
        self._others, self._mine, self._is_checked = {}, {}, False
        tasks = ctx.data.tasks
        for name in published_names(ctx, ctx.bus, but=self):
            if name.startswith(_FIRST):
                task, _, loss = name.removeprefix(_FIRST).rpartition("/")
                if not task or task in tasks:
                    self._others.setdefault(task or None, set()).add(loss)
        if ctx.position.global_step == 0:
            self._epoch.clear()
            self._recent.clear()

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Begins a new mean, unless the run goes on inside an epoch.

        Everybody is prepared now, and nothing is lost yet: so it lets plugins check their names.

        Raises:
            JobError: a name that a plugin watches will not be published.
        """
        if not self._is_checked:
            check_watched(ctx)
        if ctx.step_id == 0:
            self._epoch.clear()
            self._recent.clear()
        self._mine = self._mine or dict(ctx.latest)  # of a resume too

    @hookimpl
    def on_batch_end(
        self, ctx: Context, losses: dict[str, Tensor], task: str | None, batch: Any
    ) -> None:
        """Adds a batch."""
        others = self._others.get(task)
        if (others is None or not others.issuperset(losses)) and ctx.exception is None:
            self._recent.add(losses, task, batch)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Publishes the means over some steps when that is due.

        Raises:
            JobError: as before the first step, now that the losses are known.
        """
        if not self._is_checked:
            self._look(ctx)
        if self._is_due(ctx, "step") and ctx.exception is None:
            self._publish(ctx, self._recent, "step")
            self._epoch.merge(self._recent)
            self._recent.clear()

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Publishes the means over the epoch."""
        if self._is_due(ctx, "epoch") and ctx.exception is None:
            self._publish(ctx, self._whole(), "epoch")

    def rank_sums(self, ctx: Context, moment: Moment) -> Tensor | None:
        """What is to be added up over all ranks, where means are published at this moment."""
        if not self._is_due(ctx, moment):
            return None
        return (self._recent if moment == "step" else self._whole()).numbers(ctx.device)

    def _is_due(self, ctx: Context, moment: Moment) -> bool:
        if moment == "epoch":
            return not is_cut_short(ctx)
        return self._every > 0 and (ctx.global_step_id + 1) % self._every == 0

    def _whole(self) -> LossMeans:
        """The means over the epoch; its parts stay, as a resumed run may go on in it."""
        whole = LossMeans(only_finite=self._epoch.only_finite, agreed=self._agreed)
        for part in (self._epoch, self._recent):
            whole.merge(part)
        return whole

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch so far."""
        return {"epoch": self._epoch.state_dict(), "recent": self._recent.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them back; a process that was not there then starts anew."""
        for name, means in (("epoch", self._epoch), ("recent", self._recent)):
            means.clear()
            if name in state:
                means.load_state_dict(state[name])

    def published_names(self, ctx: Context) -> list[str]:
        """What it is going to publish, ``*`` for losses that are not known yet."""
        tasks = ctx.data.tasks
        losses = expected_losses(ctx, tasks, training=True)
        several = len(losses) > max(len(tasks), 1)
        sums = [f"{task}/{_LOSS}" for task in tasks] or [_LOSS]
        found = [f"{_FIRST}{loss}" for loss in [*losses, *(sums if several else ())]]
        return [*found, *(f"{name}{STEP}" for name in found)]

    def _look(self, ctx: Context) -> None:
        """Checks the names again as long as there are losses that were not seen before."""
        if ctx.exception is None and ctx.losses:
            is_new, self._is_checked = note_losses(ctx)
            if is_new:
                check_watched(ctx)

    def _publish(self, ctx: Context, found: LossMeans, moment: Moment) -> None:
        sums = summed(ctx, self, moment) if ctx.world_size > 1 else None
        means = found.means(ctx.world_size, ctx.device, sums)
        values, end = {}, STEP if moment == "step" else ""
        for name, mean in (means | sums_of(means)).items():
            task, _, loss = name.rpartition("/")
            published = f"{_FIRST}{name}{end}"
            others = self._others.setdefault(task or None, set())
            if ctx.latest.get(published) is not self._mine.get(published):
                others.add(loss)
            if loss not in others:
                values[published] = mean
        if values:
            self._mine |= values
            ctx.log(values)


def sums_of(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``<task>/loss`` of every task that has several losses, and none of that name."""
    tasks: dict[str, dict[str, Tensor]] = {}
    for name, mean in means.items():
        task, slash, loss = name.rpartition("/")
        tasks.setdefault(f"{task}{slash}", {})[loss] = mean
    return {
        f"{task}{_LOSS}": sum(losses.values(), start=0.0 * next(iter(losses.values())))
        for task, losses in tasks.items()
        if len(losses) > 1 and _LOSS not in losses
    }
