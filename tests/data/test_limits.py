"""What no resume can continue exactly is said once, when the run starts, with what to use."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from samples import Drawing, Noisy
from tiny import tiny_trainer
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

from hatbus import hookimpl
from hatbus.data.limits import limits_of
from hatbus.data.loaders import loader

WORKERS: dict[str, Any] = {"num_workers": 1}
PERSISTENT: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
TENSORS = TensorDataset(torch.ones(8, 3), torch.ones(8, 1))


class Stateful(DataLoader[Any]):
    """A DataLoader with a state, as torchdata has."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def _shuffle(data: Any) -> Any:
    return data


class Pipeline(IterableDataset[Any]):
    """A data set of webdataset: stages, one of which shuffles."""

    def __init__(self, **options: Any) -> None:
        self.pipeline = [SimpleNamespace(), SimpleNamespace(f=_shuffle, kw=options)]

    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


class BufferShuffledExamplesIterable:
    """What stands for a shuffle buffer in datasets' IterableDataset."""


class Buffered(Pipeline):
    """A data set of the library datasets."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self._ex_iterable = SimpleNamespace(ex_iterable=BufferShuffledExamplesIterable())


class Node:
    """A node of torchdata's graphs."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Node.__module__ = "torchdata.nodes.loader"
SAMPLER = RandomSampler(TENSORS, generator=torch.Generator())
BY_EPOCH = DistributedSampler(TENSORS, num_replicas=1, rank=0)
EXACT = {
    "a node with a sampler by epoch": Node(root=Node(source=Node(sampler=BY_EPOCH))),
    "ours": loader(Noisy(), 2, **PERSISTENT),
    "torch's": DataLoader(Noisy(), 2),
    "workers": DataLoader(Noisy(), 2, **WORKERS),
    "tensors": DataLoader(TENSORS, 2, **PERSISTENT),
    "stateful": Stateful(Noisy(), 2),
    "a seeded shuffle": DataLoader(Pipeline(seed=1), 2),
    "a buffer that is gone through again": DataLoader(Buffered(), 2),
}
INEXACT = {
    "workers that persist": (DataLoader(Subset(Noisy(), [1]), 2, **PERSISTENT), "that persist"),
    "workers that race": (DataLoader(Drawing(), 2, in_order=False, **WORKERS), "in_order=False"),
    "workers of a stateful one": (Stateful(Noisy(), 2, **WORKERS), "is not part of its state"),
    "an unseeded shuffle": (DataLoader(Pipeline(), 2), "webdataset's shuffle has no seed"),
    "a node with a sampler by chance": (
        Node(root=Node(source=Node(sampler=SAMPLER))),
        "saves how many samples RandomSampler gave, and not their order",
    ),
    "a shuffle buffer": (Stateful(Buffered(), 2), "datasets does not save its shuffle buffer"),
}


@pytest.mark.parametrize("kind", EXACT)
def test_of_a_loader_that_is_exact_nothing_is_said(kind: str) -> None:
    assert not list(limits_of(EXACT[kind]))


@pytest.mark.parametrize("kind", INEXACT)
def test_a_limit_is_named_with_what_to_do(kind: str) -> None:
    data, said = INEXACT[kind]
    (found,) = limits_of(data)
    assert said in found


class Saves:
    @hookimpl
    def save_checkpoint(self) -> str:
        return "path"


@pytest.mark.parametrize("saves", [False, True])
def test_it_is_said_once_and_only_of_a_run_that_saves(
    saves: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data: Any = DataLoader(list(zip(*TENSORS.tensors, strict=True)), 2, **PERSISTENT)  # type: ignore[arg-type]  # a list is a data set
    trainer = tiny_trainer([Saves()] if saves else [], data)
    trainer.fit(num_steps=2)
    trainer.fit(num_steps=4)
    said = "the loader: a resume in mid-epoch is not exact: what is random in workers that persist"
    assert caplog.text.count(said) == int(saves)
