"""Loaders whose order is a function of (seed, epoch, position), so that a run can go on exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import DataLoader, Sampler

from hatbus.errors import DataError
from hatbus.processes import rank_and_world

if TYPE_CHECKING:
    from torch.utils.data import Dataset


def seed_of(*parts: object) -> int:
    """A 63-bit seed made of the parts; different parts give unrelated seeds."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class BatchOrder(Sampler[list[int]]):
    """The index batches of one rank: a function of (seed, epoch), started at any batch.

    Args:
        length: samples in the data set.
        batch_size: samples per batch of one rank.
        shuffle: another order in every epoch; else the order of the data set.
        drop_last: leave out a last batch that is not full.
        seed: of the order.
        rank, world: this process and how many there are. Every rank gets equally many samples;
            the last ones are filled up from the front.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if length < 1:
            raise DataError("the data set is empty; a loader needs at least one sample")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size!r}; accepted: 1 or more")
        self.length, self.batch_size = length, batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world = rank, world
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        mine = -(-self.length // self.world)
        return mine // self.batch_size if self.drop_last else -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The index batches of the epoch, from the set position on."""
        indices = self.indices()
        for batch in range(self.first, len(self)):
            yield indices[batch * self.batch_size : (batch + 1) * self.batch_size]

    def indices(self) -> list[int]:
        """This rank's sample indices in this epoch."""
        order = list(range(self.length))
        if self.shuffle:
            chance = torch.Generator().manual_seed(seed_of("order", self.seed, self.epoch))
            order = torch.randperm(self.length, generator=chance).tolist()
        missing = -self.length % self.world
        order += (order * (missing // self.length + 1))[:missing]
        return order[self.rank :: self.world]


class ExactLoader(DataLoader[Any]):
    """A ``DataLoader`` that can be told where to start; see ``loader``."""

    def set_position(self, epoch: int, batch: int) -> None:
        """The next iteration gives the batches of ``epoch`` from number ``batch`` on."""
        order = cast(BatchOrder, self.batch_sampler)
        order.epoch, order.first = epoch, batch
        cast(torch.Generator, self.generator).manual_seed(seed_of("workers", order.seed, epoch))

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(cast(BatchOrder, self.batch_sampler))


def loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    **options: Any,
) -> ExactLoader:
    """A ``torch.utils.data.DataLoader`` whose order is a function of (seed, epoch, position).

    Args:
        dataset: with ``__len__`` and ``__getitem__``.
        batch_size: samples per batch of one process.
        shuffle: another order in every epoch.
        drop_last: leave out a last batch that is not full.
        seed: of the order.
        num_workers: worker processes.
        options: further arguments of ``DataLoader``.

    Raises:
        DataError: the data set has no length or is empty.
    """
    if not hasattr(dataset, "__len__"):
        raise DataError(f"{type(dataset).__name__} has no length; give hatbus.data.loader one that has")
    rank, world = rank_and_world()
    order = BatchOrder(
        len(cast(Sized, dataset)),
        batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=seed,
        rank=rank,
        world=world,
    )
    return ExactLoader(
        dataset,
        batch_sampler=order,
        num_workers=num_workers,
        generator=torch.Generator(),
        **options,
    )
