"""What is random in data is a function of seed, epoch and place, not of who reads it with whom."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from samples import Noisy
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from hatbus.data.loaders import ExactLoader, loader


def by_index(data: Any, batch_size: int) -> dict[float, list[float]]:
    """Every sample's noise, by the sample."""
    rows = torch.cat(list(loader(data, batch_size, seed=0)))
    return {row[0].item(): row[1:].tolist() for row in rows}


WRAPPED: dict[str, Any] = {
    "plain": Noisy(),
    "subset": Subset(Noisy(), range(10)),
    "subset of a subset": Subset(Subset(Noisy(), range(10)), range(9)),
    "concatenated": ConcatDataset([Subset(Noisy(), range(5)), Subset(Noisy(), range(5, 10))]),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_augmentation_of_a_sample_does_not_depend_on_the_batch_size(kind: str) -> None:
    data = WRAPPED[kind]
    assert by_index(data, 2) == by_index(data, 4) == by_index(data, 10)


def test_a_data_set_that_reads_whole_batches_still_does() -> None:
    class Batched(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitems__(self, indices: list[int]) -> list[float]:
            calls.append(len(indices))
            return [i + random.random() for i in indices]

        def __getitem__(self, index: int) -> float:
            raise AssertionError("not one by one")

    calls: list[int] = []
    for data in (Batched(), Subset(Batched(), range(8))):
        first, again = (torch.cat(list(loader(data, 4, seed=1))) for _ in range(2))
        assert first.equal(again)
    assert calls == [4] * 8


def mixed(rows: list[Any]) -> torch.Tensor:
    """A random collate function: every generator has a say."""
    batch = torch.stack([row[0] if isinstance(row, (list, tuple)) else row for row in rows])
    return batch + random.random() + np.random.rand() + torch.rand(())


@pytest.mark.parametrize("data", [TensorDataset(torch.arange(10.0)), Noisy()])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_random_collate_function_is_a_function_of_the_place(
    data: Any, workers: int, keeps: bool
) -> None:
    def build(workers: int) -> ExactLoader:
        keep = keeps and workers > 0
        return loader(
            data, 3, seed=4, num_workers=workers, collate_fn=mixed, persistent_workers=keep
        )

    whole, one = build(0), build(workers)
    for epoch, first in ((0, 0), (1, 2), (2, 1)):
        for each in (whole, one):
            each.set_position(epoch, 0 if each is whole else first)
        expected, found = list(whole)[first:], list(one)
        assert all(a.equal(b) for a, b in zip(expected, found, strict=True))


def test_every_batch_is_collated_by_other_random_numbers() -> None:
    data = loader(TensorDataset(torch.zeros(12)), 3, collate_fn=mixed)
    added = []
    for epoch in range(2):
        data.set_position(epoch, 0)
        added += [batch[0].item() for batch in data]
    assert len(set(added)) == 8


def test_a_random_collate_function_leaves_the_trainings_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(loader(TensorDataset(torch.arange(10.0)), 3, collate_fn=mixed))
    assert torch.get_rng_state().equal(before)


def test_torchs_own_collate_function_may_be_given() -> None:
    data = loader(TensorDataset(torch.arange(4.0)), 2, shuffle=False, collate_fn=default_collate)
    assert [batch[0].tolist() for batch in data] == [[0.0, 1.0], [2.0, 3.0]]
