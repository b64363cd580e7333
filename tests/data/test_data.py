"""Data as a function of (seed, epoch, position): order, augmentation, the share of each process."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import Noisy, seen_in_fits
from tiny import tiny_trainer
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, WeightedRandomSampler

from hatbus import hookimpl
from hatbus.data.loaders import BatchOrder, ExactLoader, loader
from hatbus.errors import DataError


def epoch_of(data: ExactLoader, epoch: int, first: int = 0) -> list[torch.Tensor]:
    data.set_position(epoch, first)
    return list(data)


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_an_epoch_holds_every_sample_once_in_another_order_each_time() -> None:
    data = loader(Noisy(), 3)
    orders = [torch.cat(epoch_of(data, e))[:, 0].tolist() for e in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_the_same_from_any_position_and_with_any_number_of_workers(
    workers: int,
) -> None:
    whole = epoch_of(loader(Noisy(), 3), 4)
    data = loader(Noisy(), 3, num_workers=workers)
    for first in (0, 1, 3):
        assert equal(epoch_of(data, 4, first), whole[first:])


def test_augmentation_differs_between_epochs_samples_and_seeds() -> None:
    plain = {
        (seed, epoch): torch.cat(epoch_of(loader(Noisy(), 3, shuffle=False, seed=seed), epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    noise = torch.cat([found[:, 1:].reshape(-1) for found in plain.values()])
    assert len(set(noise.tolist())) == len(noise)


def test_reading_augmented_data_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate()
    epoch_of(loader(Noisy(), 3), 0)
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]


def test_a_loader_without_a_seed_takes_the_runs() -> None:
    data, own = loader(Noisy(), 3), loader(Noisy(), 3, seed=5)
    for one in (data, own):
        one.adopt_seed(8)
    assert (data.order.seed, own.order.seed) == (8, 5)
    assert equal(epoch_of(data, 0), epoch_of(loader(Noisy(), 3, seed=8), 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_of_two_trainers_reads_a_common_loader_by_its_own_seed(workers: int) -> None:
    def samples(data: Any, seed: int) -> list[list[float]]:
        return [batch for _, batch, _ in seen_in_fits(lambda: data, 4, seed=seed)]

    data = loader(Noisy(), 3, num_workers=workers, persistent_workers=workers > 0)
    for seed in (0, 1, 0):
        assert samples(data, seed) == samples(loader(Noisy(), 3), seed)


@pytest.mark.parametrize("world", [2, 4])
def test_the_samples_of_a_step_do_not_depend_on_the_number_of_processes(world: int) -> None:
    one = BatchOrder(16, 8, seed=3)
    many = [BatchOrder(16, 8 // world, seed=3, rank=r, world=world) for r in range(world)]
    for whole, *parts in zip(one, *many, strict=True):
        assert sorted(whole) == sorted(i for part in parts for i in part)


@pytest.mark.parametrize("length", [14, 15, 16, 17])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_steps_of_an_epoch_do_not_depend_on_the_number_of_processes(
    length: int, drop_last: bool
) -> None:
    found = []
    for world in (1, 2, 4):
        options: dict[str, Any] = {"drop_last": drop_last, "world": world}
        ranks = [list(BatchOrder(length, 8 // world, rank=r, **options)) for r in range(world)]
        full = [sorted(i for part in parts for i in part) for parts in zip(*ranks, strict=True)]
        found.append((len(full), full[: length // 8]))
    assert found[1:] == found[:1] * 2
    assert found[0][0] == (length // 8 if drop_last else -(-length // 8))


def data_of(length: int, batch_size: int, rank: int, world: int) -> ExactLoader:
    """The loader that a rank has of so many samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hatbus.data.loaders.rank_and_world", lambda: (rank, world))
        return loader(TensorDataset(torch.arange(length)), batch_size)


@pytest.mark.parametrize("length", [1, 3, 8, 9, 10, 16, 17, 33])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_pass_over_each_once_has_every_sample_on_one_rank(
    length: int, batch_size: int, world: int
) -> None:
    ranks = []
    for rank in range(world):
        data = data_of(length, batch_size, rank, world)
        data.set_position(3, 1)
        ranks.append([batch.tolist() for (batch,) in data.each_once()])
        assert ranks[-1] == [batch.tolist() for (batch,) in data.each_once()]
        assert all(0 < len(batch) <= batch_size for batch in ranks[-1])
    seen = sorted(i for rank in ranks for batch in rank for i in batch)
    assert seen == sorted([*range(length)] * (1 if length >= world else world))
    counts = {len(rank) for rank in ranks}
    assert len(counts) == 1 or batch_size == 1
    equal = [
        len(list(data_of(length, batch_size, r, world).each_once(equal=True))) for r in range(world)
    ]
    assert len(set(equal)) == 1
    if world == 1:
        assert [len(batch) for batch in ranks[0][:-1]] == [batch_size] * (len(ranks[0]) - 1)


def test_training_is_given_equally_many_samples_on_every_rank_after_such_a_pass() -> None:
    order = BatchOrder(9, 2, world=2, rank=1)
    before = list(order)
    order.fills = False
    assert sum(map(len, order)) == 4
    order.fills = True
    assert list(order) == before
    assert sum(map(len, order)) == 5


SPLIT: dict[str, Callable[[], Any]] = {
    "hatbus": lambda: loader(Noisy(), 2),
    "distributed": lambda: DataLoader(Noisy(), 2, sampler=DistributedSampler(Noisy(), 2, 0)),
    "own batches": lambda: DataLoader(Noisy(), batch_sampler=BatchOrder(10, 2, world=2)),
    "list": lambda: [torch.ones(2)],
}


WHOLE: dict[str, Callable[[], Any]] = {
    "in order": lambda: DataLoader(Noisy(), 2),
    "shuffling": lambda: DataLoader(Noisy(), 2, shuffle=True),
    "by weight": lambda: DataLoader(Noisy(), 2, sampler=WeightedRandomSampler([1.0] * 10, 10)),
    "no batches": lambda: DataLoader(Noisy(), None, shuffle=True),
}


@pytest.mark.parametrize("kind", [*SPLIT, *WHOLE])
def test_a_loader_that_gives_all_to_every_process_is_warned_of(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_trainer(data={"a": (SPLIT | WHOLE)[kind]()}).ctx.data.warn_of_copies(2)
    told = "the loader of task 'a' gives all its samples to each of the 2 processes"
    assert caplog.text.count(told) == (kind in WHOLE)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        loader(TensorDataset(torch.ones(0, 2)), 3)


def test_a_trainer_that_is_only_made_changes_no_other_ones_data() -> None:
    def orders(*, disturbed: bool) -> list[list[float]]:
        data = loader(TensorDataset(torch.arange(8.0).reshape(8, 1), torch.zeros(8, 1)), 2)
        seen: list[list[float]] = []

        class Sees:
            @hookimpl
            def on_batch_begin(self, batch: Any) -> None:
                seen.append(batch[0].flatten().tolist())

            @hookimpl
            def on_epoch_end(self) -> None:
                if disturbed:
                    tiny_trainer(data=data, model=torch.nn.Linear(1, 1), seed=5)

        trainer = tiny_trainer([Sees()], data, model=torch.nn.Linear(1, 1), seed=1)
        trainer.fit(num_epochs=2)
        return seen

    assert orders(disturbed=True) == orders(disturbed=False)
