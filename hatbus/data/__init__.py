"""Loaders whose order can be continued exactly, the steps made of them, and task samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.data.batch_size import samples_in
    from hatbus.data.feed import apart, generators_of, length_of
    from hatbus.data.loaders import BatchOrder, loader
    from hatbus.data.moving import moved
    from hatbus.data.seeded import SeededSamples, seed_of
    from hatbus.data.steps import Steps, timed
    from hatbus.data.task_sampler import AllTasks, ListedTasks, OneTask, WeightedTasks

__all__ = [
    "AllTasks",
    "BatchOrder",
    "ListedTasks",
    "OneTask",
    "SeededSamples",
    "Steps",
    "WeightedTasks",
    "apart",
    "generators_of",
    "length_of",
    "loader",
    "moved",
    "samples_in",
    "seed_of",
    "timed",
]

__getattr__ = lazily(
    __name__,
    AllTasks="task_sampler",
    apart="feed",
    BatchOrder="loaders",
    generators_of="feed",
    length_of="feed",
    ListedTasks="task_sampler",
    loader="loaders",
    moved="moving",
    OneTask="task_sampler",
    samples_in="batch_size",
    SeededSamples="seeded",
    seed_of="seeded",
    Steps="steps",
    timed="steps",
    WeightedTasks="task_sampler",
)
