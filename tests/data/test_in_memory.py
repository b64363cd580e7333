"""Tensors in memory are gathered by index: the batches that torch's collation would make."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from hatbus.data import loader
from hatbus.data.loaders import ExactLoader
from hatbus.errors import DataError

ROWS = 23


class Collated(Dataset[Any]):
    """The same samples, which torch's collation puts together."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


def columns() -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(3)
    return [
        torch.randn(ROWS, 3, 2, generator=chance).transpose(1, 2),
        torch.arange(ROWS),
        torch.rand(ROWS, generator=chance) < 0.5,
        torch.randn(ROWS, 4, generator=chance).to(torch.float16)[:, ::2],
        torch.randn(1, 2, generator=chance).expand(ROWS, 2),
        torch.randn(ROWS, dtype=torch.complex64, generator=chance).conj(),
        torch.empty(ROWS, 0),
    ]


def named() -> dict[str, torch.Tensor]:
    return {f"column {number}": column for number, column in enumerate(columns())}


def some(dataset: Any) -> Subset[Any]:
    return Subset(Subset(dataset, [22, 3, 3, 9, 17, 0, 5, 11, 12]), [8, 1, 2, 3, 4, 0, 6])


DATASETS: dict[str, Any] = {
    "tensors": lambda: TensorDataset(*columns()),
    "one tensor": lambda: TensorDataset(torch.arange(31.0)),
    "names": named,
    "a subset of subsets": lambda: some(TensorDataset(*columns())),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def reference(dataset: Any) -> Any:
    """A loader's data set whose samples are collated."""
    if isinstance(dataset, dict):
        return Collated([{k: v[i] for k, v in dataset.items()} for i in range(ROWS)])
    return Collated(dataset)


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"shuffle": False}, {"seed": 4}])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (2, 3)])
def test_batches_are_those_of_torchs_collation(
    kind: str, options: dict[str, Any], rank: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hatbus.data.loaders.rank_and_world", lambda: (rank, world))
    dataset = DATASETS[kind]()
    gathered = loader(dataset, 2, **options)
    collated = loader(reference(dataset), 2, **options)
    for epoch, first in ((0, 0), (1, 0), (1, 2), (3, 1)):
        for data in (gathered, collated):
            data.set_position(epoch, first)
        found, expected = list(gathered), list(collated)
        assert expected or first
        assert same(found, expected)
    assert same(list(gathered.each_once()), list(collated.each_once()))
    assert gathered.identity() == collated.identity()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_subset_may_count_from_the_end(workers: int) -> None:
    rows = TensorDataset(torch.arange(10))
    picked = Subset(Subset(rows, [5, -1, 7, -10]), [-1, 0, 1, -2])
    data = loader(picked, 3, shuffle=False, num_workers=workers)
    assert [batch[0].tolist() for batch in data] == [[0, 5, 9], [7]]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("index", [10, -11])
def test_an_index_that_no_row_has_is_named(index: int, workers: int) -> None:
    picked = Subset(TensorDataset(torch.arange(10)), [1, index])
    data = loader(picked, 2, shuffle=False, num_workers=workers)
    with pytest.raises(IndexError, match=f"a subset has index {index} of a data set of 10 rows"):
        list(data)


class Numbers:
    """Indices that are computed; to ask for one too many raises nothing."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, place: int) -> int:
        return 2 * place


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        ([[0, 1], [2, 3]], [[[0, 1], [2, 3]]]),
        ([slice(2), slice(3, 5)], [[[0, 1], [3, 4]]]),
        (Numbers(), [[0, 2], [4, 6]]),
        (numpy.array([3, 1]), [[3, 1]]),
        (torch.tensor([3, 1]), [[3, 1]]),
        ([torch.tensor(3), numpy.int64(1)], [[3, 1]]),
        (range(8, 1, -3), [[8, 5], [2]]),
    ],
)
def test_a_subset_may_have_any_indices_that_its_data_takes(indices: Any, expected: Any) -> None:
    picked: Any = Subset(TensorDataset(torch.arange(10)), indices)
    data = loader(picked, 2, shuffle=False)
    assert [batch[0].tolist() for batch in data] == expected


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("indices", [[True, False], [0.0, 1.0], ["0", "1"]])
def test_indices_that_the_data_refuses_are_refused(indices: Any) -> None:
    picked = Subset(TensorDataset(torch.arange(10)), indices)
    with pytest.raises((IndexError, RuntimeError, TypeError)):
        list(loader(picked, 2, shuffle=False))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_rows_of_unequal_length_come_as_from_torch() -> None:
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    data = loader(TensorDataset(ragged), 1, shuffle=False)
    assert [tuple(batch[0].shape) for batch in data] == [(1, 2), (1, 3)]


def test_tensors_that_require_gradients_are_refused_with_workers() -> None:
    rows = TensorDataset(torch.ones(4, requires_grad=True))
    for dataset in (rows, Subset(rows, [0, 1]), {"rows": rows.tensors[0]}):
        with pytest.raises(DataError, match="do not flow out of a worker"):
            loader(dataset, 2, num_workers=1)


def test_the_position_is_read_when_an_iteration_begins() -> None:
    data = loader(TensorDataset(torch.arange(6)), 2, shuffle=False)
    data.set_position(0, 1)
    iterator = iter(data)
    data.set_position(0, 2)
    assert [batch[0].tolist() for batch in iterator] == [[2, 3], [4, 5]]


def test_a_batch_shares_no_memory_with_the_data() -> None:
    rows = torch.arange(6)
    for batch in loader({"rows": rows}, 6, shuffle=False):
        batch["rows"].zero_()
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_rows_that_change_between_epochs_are_read_as_they_are() -> None:
    rows = torch.zeros(4)
    picked = Subset(TensorDataset(rows), [0, 1])
    data = loader(picked, 2, shuffle=False)
    list(data)
    rows += 1
    picked.indices = [2, 3]
    rows[3] = 7
    assert [batch[0].tolist() for batch in data] == [[1.0, 7.0]]


def test_nothing_random_is_drawn() -> None:
    before = torch.get_rng_state()
    list(loader(TensorDataset(torch.arange(6)), 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["names", "tensors", "a subset"])
def test_workers_give_the_same_batches(kind: str) -> None:
    plain = [column for column in columns() if not column.is_conj()]  # torch's cannot collate those
    dataset: Any = TensorDataset(*plain)
    if kind == "names":
        dataset = {str(number): column for number, column in enumerate(plain)}
    elif kind == "a subset":
        dataset = some(dataset)
    alone, helped = loader(dataset, 3), loader(dataset, 3, num_workers=1)
    found: list[list[Any]] = []
    for data in (alone, helped):
        data.set_position(1, 1)
        found.append(list(data))
    assert same(*found)


class Doubled(TensorDataset):
    """Computes something per sample."""

    def __getitem__(self, index: Any) -> Any:
        return tuple(2 * one for one in super().__getitem__(index))


def test_what_computes_per_sample_is_asked_for_each() -> None:
    rows = torch.arange(4)
    assert [b[0].tolist() for b in loader(Doubled(rows), 2, shuffle=False)] == [[0, 2], [4, 6]]
    halves = loader(TensorDataset(rows), 2, shuffle=False, collate_fn=lambda found: len(found))
    assert list(halves) == [2, 2]
    sparse = TensorDataset(torch.eye(4).to_sparse())
    stacked = loader(sparse, 2, shuffle=False, collate_fn=lambda r: torch.stack([x for (x,) in r]))
    assert [batch.to_dense().shape for batch in stacked] == [(2, 4), (2, 4)]


def test_a_gradient_flows_into_the_data() -> None:
    rows = torch.ones(3, requires_grad=True)
    for (batch,) in loader(TensorDataset(rows), 2, shuffle=False):
        (2 * batch).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [2.0, 2.0, 2.0]


def test_the_loader_can_be_pickled() -> None:
    data: ExactLoader = loader(named(), 5)
    data.set_position(2, 0)
    again = pickle.loads(pickle.dumps(data))
    again.set_position(2, 0)
    assert same(list(again), list(data))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "the mapping of tensors is empty; accepted: tensors that all have equally many rows"),
        ({"x": torch.ones(3), "y": torch.ones(2)}, "'x' has 3 rows and 'y' has 2; accepted"),
        ({"x": torch.tensor(1.0)}, "'x' is a tensor without rows; accepted"),
        ({"x": [1, 2]}, "'x' is of type list; accepted"),
        ({"x": torch.ones(0, 2)}, "the data set is empty"),
    ],
)
def test_tensors_that_cannot_be_used_are_refused(tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        loader(tensors, 2)


def test_an_array_is_told_how_to_become_a_tensor() -> None:
    with pytest.raises(DataError, match=r"of type ndarray; .*; torch.as_tensor makes one of it"):
        loader({"x": torch.ones(3).numpy()}, 2)


def test_samples_by_number_are_no_tensors_by_name() -> None:
    samples: Any = {0: torch.ones(2), 1: torch.zeros(2)}
    assert [batch.tolist() for batch in loader(samples, 2, shuffle=False)] == [[[1, 1], [0, 0]]]
