"""Which tasks a step holds: one, all, a weighted choice, or a list.

A sampler is a pure function of (seed, epoch, step), so that it has no state to save, and knows
exactly how many steps an epoch has. An epoch is one pass over the task that needs most steps;
shorter loaders begin again.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hatbus.errors import JobError, did_you_mean

Groups = Mapping[Any, int | None]
_CHUNK: Final = 1024


class TaskSampler:
    """Base of the samplers: one of your own has ``choose`` and ``per_epoch``.

    Args:
        steps: steps per epoch; None: one pass over the task that needs most steps.
    """

    is_plain = False
    """Whether a run with one loader takes one batch of it in every step."""

    def __init__(self, *, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise JobError(f"steps is {steps!r}; accepted: 1 or more steps per epoch")
        self.steps = steps
        self.tasks: tuple[Any, ...] = ()

    def bind(self, tasks: tuple[Any, ...]) -> None:
        """Takes the run's tasks.

        Raises:
            JobError: the sampler names a task that the run does not have.
        """
        self.tasks = tasks
        for task in self.named():
            if task not in tasks:
                hint = did_you_mean(str(task), [str(t) for t in tasks])
                raise JobError(f"the task sampler names unknown task {task!r}{hint}")

    def named(self) -> Sequence[Any]:
        """The tasks that this sampler's own arguments name."""
        return ()

    def choose(self, seed: int, epoch: int, step: int) -> Sequence[Any]:
        """The tasks of one step, in order; a task may stand in it more than once.

        Args:
            seed: of the run.
            epoch: from 0.
            step: inside the epoch, from 0.
        """
        raise NotImplementedError

    def per_epoch(self, groups: Groups) -> int | None:
        """Steps in one epoch by the lengths of the loaders; None when one that counts has none.

        Args:
            groups: task to groups of batches in one pass over its loader, or None.
        """
        raise NotImplementedError

    def steps_per_epoch(self, groups: Groups) -> int | None:
        """Steps in one epoch.

        Args:
            groups: task to groups of batches in one pass over its loader, or None.
        """
        return self.steps if self.steps is not None else self.per_epoch(groups)

    def counts(self, seed: int, epoch: int, steps: int) -> Counter[Any]:
        """How often each task was chosen in the first ``steps`` steps of an epoch."""
        return Counter(t for s in range(steps) for t in self.choose(seed, epoch, s))


def longest(groups: Groups, per_round: Mapping[Any, int]) -> int | None:
    """Rounds until every task in ``per_round`` had one whole pass."""
    rounds = [None if groups[t] is None else -(-groups[t] // n) for t, n in per_round.items()]  # type: ignore[operator]  # None is excluded
    return None if None in rounds else max(r for r in rounds if r is not None)


class AllTasks(TaskSampler):
    """Every task in every step.

    Args:
        factors: task to how often it stands in a step; once by default.
        steps: steps per epoch; None: one pass over the task that needs most steps.

    Raises:
        JobError: a factor below 1.
    """

    def __init__(
        self, factors: Mapping[str, int] | None = None, *, steps: int | None = None
    ) -> None:
        super().__init__(steps=steps)
        self.factors = dict(factors or {})
        for task, factor in self.factors.items():
            if factor < 1:
                raise JobError(f"factor of task {task!r} is {factor!r}; accepted: 1 or more")
        self.is_plain = not self.factors and steps is None
        self._round: tuple[Any, ...] = ()

    def bind(self, tasks: tuple[Any, ...]) -> None:
        """Takes the run's tasks; see ``TaskSampler.bind``."""
        super().bind(tasks)
        self._round = tuple(t for t in tasks for _ in range(self.factors.get(t, 1)))

    def named(self) -> Sequence[Any]:
        """The tasks that the arguments name."""
        return tuple(self.factors)

    def choose(self, seed: int, epoch: int, step: int) -> Sequence[Any]:
        """The tasks of one step."""
        return self._round

    def per_epoch(self, groups: Groups) -> int | None:
        """Steps in one epoch."""
        return longest(groups, Counter(self._round))

    def counts(self, seed: int, epoch: int, steps: int) -> Counter[Any]:
        """How often each task was chosen in the first steps of an epoch."""
        return Counter({t: n * steps for t, n in Counter(self._round).items()})


class ListedTasks(TaskSampler):
    """The steps of a list, over and over.

    Args:
        listed: one task or more per step: ``["det", "seg"]`` or ``[["det", "seg"], "seg"]``.
        steps: steps per epoch; None: one pass over the task that needs most steps.

    Raises:
        JobError: the list is empty.
    """

    def __init__(self, listed: Sequence[str | Sequence[str]], *, steps: int | None = None) -> None:
        super().__init__(steps=steps)
        if not listed:
            raise JobError("the list of tasks is empty; accepted: one task or more per step")
        self.listed = [(t,) if isinstance(t, str) else tuple(t) for t in listed]

    def named(self) -> Sequence[Any]:
        """The tasks that the arguments name."""
        return [t for step in self.listed for t in step]

    def choose(self, seed: int, epoch: int, step: int) -> Sequence[Any]:
        """The tasks of one step."""
        return self.listed[step % len(self.listed)]

    def per_epoch(self, groups: Groups) -> int | None:
        """Steps in one epoch."""
        rounds = longest(groups, Counter(self.named()))
        return None if rounds is None else rounds * len(self.listed)


class OneTask(TaskSampler):
    """One task a step, in turn.

    Args:
        steps: steps per epoch; None: one pass over the task that needs most steps.
    """

    def choose(self, seed: int, epoch: int, step: int) -> Sequence[Any]:
        """The tasks of one step."""
        return (self.tasks[step % len(self.tasks)],)

    def per_epoch(self, groups: Groups) -> int | None:
        """Steps in one epoch."""
        rounds = longest(groups, dict.fromkeys(self.tasks, 1))
        return None if rounds is None else rounds * len(self.tasks)


class WeightedTasks(TaskSampler):
    """One task a step, chosen with the given weights.

    Args:
        weights: task to weight, 0 or more; 1 by default.
        steps: steps per epoch; None: as many as all loaders together have groups of batches.

    Raises:
        JobError: a weight below 0, or a sum that is 0 or infinite.
    """

    def __init__(
        self, weights: Mapping[str, float] | None = None, *, steps: int | None = None
    ) -> None:
        super().__init__(steps=steps)
        self.weights = dict(weights or {})
        for task, weight in self.weights.items():
            if not weight >= 0:
                raise JobError(f"weight of task {task!r} is {weight!r}; accepted: 0 or more")
        self._chunk: tuple[Any, list[Any]] = (None, [])

    def bind(self, tasks: tuple[Any, ...]) -> None:
        """Takes the run's tasks; see ``TaskSampler.bind``."""
        super().bind(tasks)
        if not 0 < sum(self.weights.get(t, 1.0) for t in tasks) < math.inf:
            raise JobError(f"weights are {self.weights!r}; accepted: finite, and not 0 for all")

    def named(self) -> Sequence[Any]:
        """The tasks that the arguments name."""
        return tuple(self.weights)

    def choose(self, seed: int, epoch: int, step: int) -> Sequence[Any]:
        """The tasks of one step."""
        key = (seed, epoch, step // _CHUNK)
        if self._chunk[0] != key:
            weights = [self.weights.get(t, 1.0) for t in self.tasks]
            chance = random.Random("hatbus task sampler {} {} {}".format(*key))  # noqa: S311 - not a secret
            self._chunk = (key, chance.choices(self.tasks, weights, k=_CHUNK))
        return (self._chunk[1][step % _CHUNK],)

    def per_epoch(self, groups: Groups) -> int | None:
        """Steps in one epoch."""
        lengths = list(groups.values())
        return None if None in lengths else sum(n for n in lengths if n is not None)
