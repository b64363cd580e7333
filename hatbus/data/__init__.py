"""From loaders to the batches of a step, in an order that a resumed run continues exactly.

Public: ``loader``, the samplers that choose the tasks of a step, ``Steps`` (a context's ``data``),
and what is to be known of any loader or batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.data.batch_size import samples_in
    from hatbus.data.feed import generators_of, length_of
    from hatbus.data.loaders import BatchOrder, ExactLoader, loader
    from hatbus.data.moving import fields_of, to_device
    from hatbus.data.seeded import SeededSamples, seed_of
    from hatbus.data.steps import Steps, with_data_wait
    from hatbus.data.task_sampler import AllTasks, ListedTasks, OneTask, TaskSampler, WeightedTasks
    from hatbus.data.workers import iterated, own_iteration

__all__ = [
    "AllTasks",
    "BatchOrder",
    "ExactLoader",
    "ListedTasks",
    "OneTask",
    "SeededSamples",
    "Steps",
    "TaskSampler",
    "WeightedTasks",
    "fields_of",
    "generators_of",
    "iterated",
    "length_of",
    "loader",
    "own_iteration",
    "samples_in",
    "seed_of",
    "to_device",
    "with_data_wait",
]

__getattr__ = lazily(
    __name__,
    samples_in="batch_size",
    own_iteration="workers",
    fields_of="moving",
    generators_of="feed",
    iterated="workers",
    length_of="feed",
    BatchOrder="loaders",
    ExactLoader="loaders",
    loader="loaders",
    to_device="moving",
    SeededSamples="seeded",
    seed_of="seeded",
    Steps="steps",
    with_data_wait="steps",
    AllTasks="task_sampler",
    ListedTasks="task_sampler",
    OneTask="task_sampler",
    TaskSampler="task_sampler",
    WeightedTasks="task_sampler",
)
