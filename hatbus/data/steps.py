"""From loaders to steps: what one optimizer update sees, how many there are, and where we stand.

A *step* is a list of ``(task, batch, weight)``. Each task that the sampler chooses for the step
brings one group of up to ``accumulate`` batches; a batch's weight is 1 / size of its group, so that
a group's gradient is the mean over its batches and tasks add up. A group never crosses the end of
a pass over its loader: the last one is smaller and weighted by what it has.

Everything is a function of (epoch, step): a resumed run finds its place by arithmetic, and loaders
that need more than a number keep that in ``state_dict``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.data import Subset, TensorDataset

from hatbus import rng
from hatbus.data.feed import Feed, gives_all_to_each
from hatbus.data.limits import limits_of
from hatbus.data.task_sampler import AllTasks, TaskSampler
from hatbus.data.workers import own_iteration
from hatbus.errors import DataError, JobError
from hatbus.log import log
from hatbus.option_values import whole

if TYPE_CHECKING:
    from hatbus.loop.context import Context

Batches = list[tuple[str | None, Any, float]]


def place_of(ctx: Context) -> tuple[int, int]:
    """Epoch and step of it that come next."""
    return ctx.position.epoch, ctx.position.step


class Steps:
    """Turns a loader, or a loader per task, into steps.

    Args:
        data: an iterable of batches, or ``{task: iterable}``.
        sampler: which tasks each step holds; all of them once by default.
        accumulate: batches per group (gradient accumulation).
        device: where batches are moved; None leaves them where they are.

    Attributes:
        times_waits: whether ``ctx.data_wait`` is kept; a plugin that reads it says so.

    Raises:
        JobError: ``accumulate`` < 1, no tasks, a sampler that names an unknown task, or tasks
            that share a loader which cannot be.
    """

    def __init__(
        self,
        data: Any,
        sampler: TaskSampler | None = None,
        accumulate: int = 1,
        device: Any = None,
    ) -> None:
        whole("accumulate", accumulate, 1)
        if sampler is not None and not hasattr(sampler, "bind"):
            raise JobError(
                f"task_sampler is {sampler!r:.80}; accepted: a sampler, as OneTask() of hatbus.data"
            )
        loaders = dict(data) if isinstance(data, Mapping) else {None: data}
        if not loaders:
            raise JobError("data is an empty mapping; accepted: a loader, or {task: loader}")
        self.tasks: tuple[str, ...] = tuple(data) if isinstance(data, Mapping) else ()
        self.accumulate = accumulate
        each = each_its_own(loaders)
        self.feeds: dict[Any, Feed] = {t: Feed(d, t, device) for t, d in each.items()}
        self._device = device
        self._sampler = sampler or AllTasks()
        self._sampler.bind(tuple(loaders))
        self.times_waits = False
        self._afterwards: Callable[[], None] | None = None
        self._running: Generator[Batches, None, None] | None = None
        self._left: tuple[tuple[int, int], dict[str, Any]] | None = None
        self._before_look: tuple[tuple[int, int], dict[str, Any]] | None = None
        self._is_told = False

    def over(self, loaders: Mapping[Any, Any]) -> Steps:
        """Such steps over other loaders, or other iterations over the same; by task, or by None."""
        data = dict(loaders) if self.tasks else loaders[None]
        return Steps(data, copy.copy(self._sampler), self.accumulate, self._device)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps in one epoch; None when a loader has no length."""
        groups = {
            t: None if f.length is None else -(-f.length // self.accumulate)
            for t, f in self.feeds.items()
        }
        return self._sampler.steps_per_epoch(groups)

    def steps(self, ctx: Context) -> Iterator[Batches]:
        """The steps of epoch ``ctx.position.epoch``, from ``ctx.position.step`` on.

        Raises:
            DataError: a loader is empty, or gives other data than before.
        """
        self.close()
        self.adopt_seed(ctx.seed)  # another trainer may have the same loader
        self._come_back(place_of(ctx))
        self._before_look = None
        is_plain = self._is_one_pass and self.accumulate == 1
        self._running = self._plain_steps(ctx) if is_plain else self._steps(ctx)
        return with_data_wait(self._running, ctx) if self.times_waits else self._running

    def is_at_end(self, ctx: Context) -> bool:
        """Whether no step of the epoch is left, where by the loader's length none is.

        The data is read to its very end, where a sampler may draw once more. A length that is an
        estimate may be too small: then there is a step, which is put back for the next ``fit`` or a
        resume to begin with.
        """
        if self._running is None:
            return True
        before, random = self.state_dict(ctx), rng.capture()
        if next(self._running, None) is None:
            return True
        rng.restore(random)
        self._before_look = (place_of(ctx), before)
        return False

    def check_epochs_end(self) -> None:
        """Refuses a plan in epochs where nobody knows when one is over.

        One loader without a length just ends; of several the first to end must not end all.

        Raises:
            JobError: which loader has no length, and what to do.
        """
        endless = next((f.name for f in self.feeds.values() if f.length is None), None)
        if endless is not None and len(self.feeds) > 1 and self.steps_per_epoch is None:
            raise JobError(
                f"{endless} has no length, so nobody knows how many steps an epoch of all tasks "
                f"has; give it a __len__, or the task sampler its number of steps (AllTasks(steps="
                "1000)), or plan the run by num_steps"
            )

    def leave(self, ctx: Context) -> None:
        """Ends every iteration at the end of a ``fit``; the next one goes on in this very place.

        After an error the rest of the epoch comes from a new pass: where a loader stands that
        failed, nobody knows. A fit that came to no step leaves the place as it was.
        """
        if self._running is None:
            return
        is_inside = ctx.position.step > 0 and ctx.exception is None
        self._left = (place_of(ctx), self.state_dict(ctx)) if is_inside else None
        self.close()

    def close(self) -> None:
        """Ends every iteration now, and with it its worker processes.

        Left to the garbage collector, which may run in any thread, that can take many seconds.
        """
        if self._running is not None:
            self._running.close()
            self._running = None
        for feed in self.feeds.values():
            feed.close()

    def _steps(self, ctx: Context) -> Generator[Batches, None, None]:
        epoch, first = place_of(ctx)
        last = None if self._is_one_pass else self.steps_per_epoch
        if self._is_over(first):
            return
        behind = self._sampler.counts(ctx.seed, epoch, first)
        for task, feed in self.feeds.items():
            feed.start(epoch, behind.get(task, 0) * self.accumulate, self.accumulate)
            feed.open_again()
        self._opened()
        if ctx.control.epoch_stopped is not None:  # in the step that was saved
            return
        step = first
        while last is None or step < last:
            batches = self._step(ctx, epoch, step, endless=last is not None)
            if not batches:
                self._tell_ends()
                break
            yield batches
            step += 1
        self._check_not_empty(step)

    def _step(self, ctx: Context, epoch: int, step: int, *, endless: bool) -> Batches:
        """One step's batches; empty when the data is at its end."""
        batches: Batches = []
        for task in self._sampler.choose(ctx.seed, epoch, step):
            group = self.feeds[task].group(self.accumulate, endless=endless)
            if not group:
                return []
            share = 1.0 / len(group)
            batches.extend((task, batch, share) for batch in group)
        return batches

    def _is_over(self, first: int) -> bool:
        """Whether no step of the epoch is left; a resumed run has to open its loaders anyway."""
        last = self.steps_per_epoch
        return last is not None and first >= last and self._afterwards is None

    def _plain_steps(self, ctx: Context) -> Generator[Batches, None, None]:
        """The common case, one loader and one batch a step, without the bookkeeping."""
        ((task, feed),) = self.feeds.items()
        first = ctx.position.step
        if self._is_over(first):
            return
        feed.start(ctx.position.epoch, first, 1)
        step, batches = first, feed.fetch()
        feed.forget_resume()
        self._opened()
        if ctx.control.epoch_stopped is not None:  # in the step that was saved
            return
        for batch in batches:
            feed.taken = step = step + 1
            yield [(task, batch, 1.0)]
        feed.end_pass()
        self._check_not_empty(step)

    # ---- state --------------------------------------------------------------------------------

    def state_dict(self, ctx: Context) -> dict[str, Any]:
        """Where every loader stands, by task ("" in a run without tasks)."""
        inside = ctx.position.step > 0
        if self._before_look is not None and self._before_look[0] == place_of(ctx):
            return self._before_look[1]
        return {task or "": feed.state_dict(inside=inside) for task, feed in self.feeds.items()}

    def load_state_dict(self, state: Mapping[str, Any], afterwards: Callable[[], None]) -> None:
        """Goes back to where the loaders stood.

        Args:
            state: from ``state_dict``.
            afterwards: called once the next epoch's loaders are open, which may draw random
                numbers: the place to put the random state back.
        """
        self._afterwards = afterwards
        for task, feed in self.feeds.items():
            if (task or "") in state:
                feed.load_state_dict(state[task or ""])

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, by task ("" in a run without tasks)."""
        return {task or "": feed.identity() for task, feed in self.feeds.items()}

    def warn(self, world: int, *, saves: bool) -> None:
        """Says before the first step what of the data is not as one would think.

        Args:
            world: number of processes.
            saves: whether the run may be resumed.
        """
        if world > 1:
            self.warn_of_copies(world)
        self.warn_of_samples()
        if saves:
            self.warn_of_limits()

    def warn_of_copies(self, world: int) -> None:
        """Says which loaders give each of ``world`` processes all samples, not a part of them."""
        for feed in self.feeds.values():
            if gives_all_to_each(feed.loader):
                log.warning(
                    "%s gives all its samples to each of the %d processes; use hatbus.data.loader "
                    "or a DistributedSampler, unless its data set is this process's part already",
                    feed.name,
                    world,
                )

    def warn_of_samples(self) -> None:
        """Says which loaders are data sets of torch's, whose samples would be the batches."""
        for feed in self.feeds.values():
            if type(feed.loader) in (TensorDataset, Subset):
                log.warning(
                    "%s is a %s, and each of its samples is taken as a batch; "
                    "hatbus.data.loader(dataset, batch_size) makes batches",
                    feed.name,
                    type(feed.loader).__name__,
                )

    def warn_of_limits(self) -> None:
        """Says of which loaders no resume in mid-epoch is exact, and why."""
        for feed in self.feeds.values():
            for limit in limits_of(feed.loader):
                log.warning("%s: a resume in mid-epoch is not exact: %s", feed.name, limit)

    def adopt_seed(self, seed: int, *, anew: bool = True) -> None:
        """Gives the run's seed to loaders that have none of their own.

        Args:
            seed: of the run.
            anew: also to those that have another trainer's.
        """
        for feed in self.feeds.values():
            takes = hasattr(feed.loader, "adopt_seed")
            if takes and (anew or feed.identity().get("seed") is None):
                feed.loader.adopt_seed(seed)

    def _come_back(self, place: tuple[int, int]) -> None:
        """Goes on where a ``fit`` left an epoch; a checkpoint that was loaded since comes first."""
        left, self._left = self._left, None
        if left is not None and left[0] == place and self._afterwards is None:
            self.load_state_dict(left[1], partial(rng.restore, rng.capture()))

    def _opened(self) -> None:
        afterwards, self._afterwards = self._afterwards, None
        if afterwards is not None:
            afterwards()

    @property
    def _is_one_pass(self) -> bool:
        """Whether an epoch is one pass over one loader, however long that turns out to be."""
        return len(self.feeds) == 1 and self._sampler.is_plain

    def _tell_ends(self) -> None:
        """Says once that an epoch of several tasks is over with the first loader that is."""
        if self._is_one_pass:
            next(iter(self.feeds.values())).end_pass()
        if len(self.feeds) > 1 and not self._is_told:
            self._is_told = True
            log.warning(
                "an epoch of all tasks is over with the first loader that ends, where one has no "
                "length; what others have left is not seen: give the task sampler its steps"
            )

    def _check_not_empty(self, steps: int) -> None:
        if steps == 0:
            names = ", ".join(f.name for f in self.feeds.values())
            raise DataError(f"{names} gave no batch; check its data set, batch size and drop_last")


def each_its_own(loaders: Mapping[Any, Any]) -> dict[Any, Any]:
    """The loaders by task, so that each can be iterated beside the others, also where two are one.

    Raises:
        JobError: two tasks have one loader that keeps its place itself.
    """
    found: dict[Any, Any] = {}
    for task, loader in loaders.items():
        others = [other for other in found if loaders[other] is loader]
        if others and hasattr(loader, "state_dict"):
            raise JobError(
                f"tasks {others[0]!r} and {task!r} share one loader, which keeps its place itself "
                "(state_dict); give each a loader of its own"
            )
        found[task] = own_iteration(loader) if others else loader
    return found


def with_data_wait(steps: Iterator[Batches], ctx: Context) -> Iterator[Batches]:
    """The steps, with the time that each took to come in ``ctx.data_wait``."""
    now, began = time.perf_counter, time.perf_counter()
    for batches in steps:
        ctx.data_wait = now() - began
        yield batches
        began = now()
