"""Whoever asks for the epoch is told it: samplers, data sets, wherever they stand in a loader."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from samples import seen_in_fits
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    StackDataset,
    Subset,
    TensorDataset,
)

from hatbus import rng
from hatbus.data.epochs import listeners
from hatbus.data.feed import PASS_STRIDE, Feed
from hatbus.data.loaders import BatchOrder, loader
from hatbus.data.seeded import SeededSamples


class Curriculum(Dataset[Any]):
    """Every sample is the epoch that the data set was told."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        return float(self.epoch)


class Wrapped(Dataset[Any]):
    """A wrapper of one's own, under a name that nobody can know."""

    def __init__(self, inner: Any) -> None:
        self._deep = {"rows": [inner]}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self._deep["rows"][0][index]


class Plain:
    """A data set without a base class."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


class Stream(IterableDataset[Any]):
    """A stream over another data set."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator[Any]:
        return (self.inner[i] for i in range(4))


class Prefetching:
    """A loader around a loader."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


def torchs(wrap: Callable[[Any], Any], **options: Any) -> Callable[[], Any]:
    return lambda: DataLoader(wrap(Curriculum()), 2, **options)


def ours(wrap: Callable[[Any], Any], **options: Any) -> Callable[[], Any]:
    return lambda: loader(wrap(Curriculum()), 2, **options)


def subset(data: Any) -> Any:
    return Subset(data, range(4))


WORKERS: dict[str, Any] = {"num_workers": 1}
PERSISTENT: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
LOADERS: dict[str, Callable[[], Any]] = {
    "torch's": torchs(lambda data: data),
    "torch's, workers": torchs(lambda data: data, **WORKERS),
    "torch's, workers that persist": torchs(subset, **PERSISTENT),
    "subset": torchs(subset),
    "concatenated": torchs(lambda data: ConcatDataset([Subset(data, [0, 1]), Subset(data, [2])])),
    "stacked": torchs(lambda data: Subset(StackDataset(data), range(4))),
    "wrapped": torchs(lambda data: Wrapped(Plain(subset(data)))),
    "stream": torchs(Stream),
    "prefetched": lambda: Prefetching(DataLoader(subset(Curriculum()), 2)),
    "ours": ours(lambda data: data),
    "ours, subset": ours(subset),
    "ours, workers": ours(subset, **WORKERS),
    "ours, workers that persist": ours(Plain, **PERSISTENT),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_data_set_knows_the_epoch_wherever_it_stands(kind: str) -> None:
    feed, found = Feed(LOADERS[kind](), None), []
    for epoch in range(3):
        feed.start(epoch, 0, 1)
        batches = [b[0] if isinstance(b, list) else b for b in feed.group(9, endless=False)]
        found.append({x for batch in batches for x in batch.flatten().tolist()})
    assert found == [{0.0}, {1.0}, {2.0}]


class Shuffling(Sampler[int]):
    """A sampler of one's own that goes by the epoch."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.told[-1] if self.told else 0)
        return iter(torch.randperm(8, generator=chance).tolist())


class Grouped(BatchSampler):
    """A wrapper of a batch sampler."""


NUMBERS = TensorDataset(torch.arange(8.0))


@pytest.mark.parametrize(
    "build",
    [
        lambda s: DataLoader(NUMBERS, 2, sampler=s),
        lambda s: DataLoader(NUMBERS, batch_sampler=BatchSampler(s, 2, False)),
        lambda s: DataLoader(NUMBERS, batch_sampler=Grouped(Grouped(s, 2, False), 1, False)),
        lambda s: Prefetching(DataLoader(NUMBERS, batch_sampler=BatchSampler(s, 2, False))),
    ],
)
def test_a_sampler_is_told_once_an_epoch_however_deep_it_is(build: Any) -> None:
    sampler = Shuffling()
    feed = Feed(build(sampler), None)
    for epoch in range(3):
        feed.start(epoch, 0, 1)
        feed.fetch()
    assert sampler.told == [0, 1, 2]


def test_a_distributed_sampler_in_a_batch_sampler_gives_torchs_own_orders() -> None:
    def order(epoch: int) -> list[int]:
        sampler = DistributedSampler(NUMBERS, 1, 0)
        sampler.set_epoch(epoch)
        return list(sampler)

    sampler = BatchSampler(DistributedSampler(NUMBERS, 1, 0), 2, False)
    seen = seen_in_fits(lambda: DataLoader(NUMBERS, batch_sampler=sampler, collate_fn=first), 12)
    numbers = [x for _, batch, _ in seen for x in batch]
    assert [numbers[8 * e : 8 * e + 8] for e in range(3)] == [order(e) for e in range(3)]


def first(rows: list[Any]) -> torch.Tensor:
    return torch.stack([row[0] for row in rows])


def test_a_data_loader_of_ones_own_with_our_order_has_another_one_in_every_epoch() -> None:
    order = BatchOrder(10, 5, with_epoch=True)
    feed = Feed(DataLoader(SeededSamples(Curriculum()), batch_sampler=order), None)
    places = []
    for epoch in range(2):
        feed.start(epoch, 0, 1)
        places.append(list(order))
        assert places[-1] == list(order)
    feed.fetch()
    assert {e for batch in order for e, _ in batch} == {1}


def test_a_wrapper_with_set_epoch_answers_for_what_it_wraps() -> None:
    class Slower(Curriculum):
        def __init__(self) -> None:
            self.inner = Curriculum()

        def set_epoch(self, epoch: int) -> None:
            self.inner.set_epoch(epoch // 2)

    data = Slower()
    assert listeners(DataLoader(data, 2)) == [data]


def test_a_list_of_samples_is_not_searched() -> None:
    class Rows(Dataset[Any]):
        def __init__(self) -> None:
            self.rows = [Curriculum()] * 5000

    assert listeners(Rows()) == []


def test_a_second_pass_in_an_epoch_is_another_epoch_to_a_sampler() -> None:
    sampler = Shuffling()
    feed = Feed(DataLoader(NUMBERS, 8, sampler=sampler), None)
    feed.start(1, 0, 1)
    for _ in range(2):
        feed.group(1, endless=True)
    assert sampler.told == [1, 1 + PASS_STRIDE]


class Negatives(Curriculum):
    """Draws what its samples are anew in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch + random.random()


@pytest.mark.parametrize(
    "build", [lambda d: DataLoader(d, 1, **PERSISTENT), lambda d: loader(d, 1)]
)
def test_what_a_data_set_draws_for_an_epoch_is_drawn_again_by_a_resume(build: Any) -> None:
    feed = Feed(build(Negatives()), None)
    for epoch in (0, 1):
        feed.start(epoch, 0, 1)
        behind = feed.group(2, endless=False)
    state = feed.state_dict(inside=True)
    rest = [batch.item() for batch in feed.group(9, endless=False)]
    again = Feed(build(Negatives()), None)
    again.load_state_dict(state)
    rng.seed_all(99)
    again.start(1, 2, 1)
    again.open_again()
    assert [batch.item() for batch in again.group(9, endless=False)] == rest
    assert {batch.item() for batch in behind} == set(rest)


def test_workers_that_persist_and_are_started_anew_for_the_epoch_are_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    feed = Feed(LOADERS["torch's, workers that persist"](), None)
    for epoch in range(3):
        feed.start(epoch, 0, 1)
        feed.group(9, endless=False)
    assert caplog.text.count("workers that persist, which nobody can tell the epoch") == 1


def test_a_validation_does_not_tell_a_data_set_that_training_is_in_another_epoch() -> None:
    data = Curriculum()
    training, validation = loader(data, 2), loader(Subset(data, [0, 1]), 2)
    training.set_position(5, 0)
    assert [x for batch in validation.each_once() for x in batch.tolist()] == [5.0, 5.0]
