"""From loaders to steps: what one optimizer update sees, how many there are, and where we stand.

A *step* is a list of ``(task, batch, weight)``. Each task that the sampler chooses for the step
brings one group of up to ``accumulate`` batches; a batch's weight is 1 / size of its group, so that
a group's gradient is the mean over its batches and tasks add up. A group never crosses the end of
a pass over its loader: the last one is smaller and weighted by what it has.

Everything is a function of (epoch, step): a resumed run finds its place by arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hatbus.errors import DataError, JobError
from hatbus.feed import Feed
from hatbus.task_sampler import AllTasks, TaskSampler

if TYPE_CHECKING:
    from hatbus.context import Context

Batches = list[tuple[str | None, Any, float]]


class Steps:
    """Turns a loader, or a loader per task, into steps.

    Args:
        data: an iterable of batches, or ``{task: iterable}``.
        sampler: which tasks each step holds; all of them once by default.
        accumulate: batches per group (gradient accumulation).
        device: where batches are moved; None leaves them where they are.

    Raises:
        JobError: ``accumulate`` < 1, no tasks, or a sampler that names an unknown task.
    """

    def __init__(
        self,
        data: Any,
        sampler: TaskSampler | None = None,
        accumulate: int = 1,
        device: Any = None,
    ) -> None:
        if accumulate < 1:
            raise JobError(f"accumulate is {accumulate!r}; accepted: 1 or more batches a step")
        loaders = dict(data) if isinstance(data, Mapping) else {None: data}
        if not loaders:
            raise JobError("data is an empty mapping; accepted: a loader, or {task: loader}")
        self.tasks: tuple[str, ...] = tuple(data) if isinstance(data, Mapping) else ()
        self.accumulate = accumulate
        self.feeds: dict[Any, Feed] = {t: Feed(d, t, device) for t, d in loaders.items()}
        self._sampler = sampler or AllTasks()
        self._sampler.bind(tuple(loaders))

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
            DataError: a loader is empty or failed.
        """
        epoch, first, last = ctx.position.epoch, ctx.position.step, self.steps_per_epoch
        if last is not None and first >= last:
            return
        if len(self.feeds) == 1 and self.accumulate == 1 and self._sampler.is_plain:
            yield from self._plain_steps(ctx, epoch, first)
            return
        behind = self._sampler.counts(ctx.seed, epoch, first)
        for task, feed in self.feeds.items():
            feed.start(epoch, behind.get(task, 0) * self.accumulate, self.accumulate)
        step = first
        while last is None or step < last:
            began = time.perf_counter()
            batches = self._step(ctx, epoch, step, endless=last is not None)
            ctx.data_wait = time.perf_counter() - began
            if not batches:
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

    def _plain_steps(self, ctx: Context, epoch: int, first: int) -> Iterator[Batches]:
        """The common case, one loader and one batch a step, without the bookkeeping."""
        ((task, feed),) = self.feeds.items()
        feed.start(epoch, first, 1)
        now, fetch = time.perf_counter, feed.fetch
        step = first
        began = now()
        for batch in fetch():
            ctx.data_wait = now() - began
            step += 1
            yield [(task, batch, 1.0)]
            began = now()
        self._check_not_empty(step)

    def _check_not_empty(self, steps: int) -> None:
        if steps == 0:
            names = ", ".join(f.name for f in self.feeds.values())
            raise DataError(f"{names} gave no batch; check its data set, batch size and drop_last")
