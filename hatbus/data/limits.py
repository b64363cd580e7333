"""What keeps a loader from being continued exactly in mid-epoch, as far as one can see.

The library's limit is said once, at a run's start, with what to use in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from hatbus.data.epochs import listeners, parts_of
from hatbus.data.workers import keeps_workers

_BY_CHANCE: Final = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_INSTEAD: Final = "hatbus.data.loader goes on exactly"


def limits_of(loader: Any) -> Iterator[str]:
    """The reasons why a run with this loader cannot be continued exactly, and what to do."""
    if hasattr(loader, "set_position"):
        return
    parts = parts_of(loader)
    is_stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    for one in parts:
        if isinstance(one, DataLoader) and one.num_workers:
            yield from _of_workers(one, is_stateful=is_stateful)
    if any(map(_shuffles_unseeded, parts)):
        yield (
            "webdataset's shuffle has no seed, so it is another order each time; give it seed=, or "
            "use detshuffle"
        )
    if is_stateful:
        yield from map(_of_sampler, _unsaved_samplers(loader))
    if is_stateful and any(map(_has_shuffle_buffer, parts)):
        yield (
            "datasets does not save its shuffle buffer, so samples are lost and others repeated; "
            "leave out shuffle(buffer_size=...), or give a Dataset that is no IterableDataset to "
            "hatbus.data.loader"
        )


def _of_workers(loader: DataLoader[Any], *, is_stateful: bool) -> Iterator[str]:
    if not getattr(loader, "in_order", True):
        yield f"in_order=False lets the workers race; leave it out, or {_INSTEAD}"
    if type(loader.dataset) is TensorDataset:
        return
    if is_stateful:
        yield (
            "what is random in its workers (augmentation, a collate function) is not part of its "
            f"state; {_INSTEAD}"
        )
    elif keeps_workers(loader) and not listeners(loader.dataset):
        yield (
            "what is random in workers that persist (augmentation, a collate function) goes on "
            f"from epoch to epoch, and begins anew after a resume; {_INSTEAD}, and so does "
            "persistent_workers=False"
        )


def _of_sampler(sampler: Any) -> str:
    return (
        f"torchdata.nodes saves how many samples {type(sampler).__name__} gave, and not their "
        "order; give it a sampler with set_epoch, such as torch's DistributedSampler with "
        "num_replicas=1 and rank=0"
    )


def _unsaved_samplers(node: Any) -> Iterator[Any]:
    """The samplers in a graph of ``torchdata.nodes`` whose order is drawn anew by every process."""
    for part in list(getattr(node, "__dict__", {}).values()):
        if isinstance(part, _BY_CHANCE):
            if not hasattr(part, "set_epoch") and not hasattr(part, "state_dict"):
                yield part
        elif type(part).__module__.startswith("torchdata.nodes"):
            yield from _unsaved_samplers(part)


def _shuffles_unseeded(part: Any) -> bool:
    stages = getattr(part, "pipeline", None)
    return isinstance(stages, list) and any(
        getattr(getattr(stage, "f", None), "__name__", "") == "_shuffle"
        and not {"seed", "rng"} & set(getattr(stage, "kw", ()))
        for stage in stages
    )


def _has_shuffle_buffer(part: Any) -> bool:
    source = getattr(part, "_ex_iterable", None)
    while source is not None:
        if type(source).__name__ == "BufferShuffledExamplesIterable":
            return True
        source = getattr(source, "ex_iterable", None)
    return False
