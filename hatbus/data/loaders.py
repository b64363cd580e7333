"""Loaders whose order is a function of (seed, epoch, position), so that a run can go on exactly.

``loader`` is what most runs want. ``BatchOrder`` is its order alone and ``SeededSamples`` its
random augmentation alone, for a ``DataLoader`` of your own::

    order        (seed, epoch)         -> which sample stands where
    augmentation (seed, epoch, index)  -> what random transforms do to that sample
    collation    (seed, epoch, batch)  -> what a random collate function does to a batch
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from itertools import chain
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hatbus.data.in_memory import (
    Gathered,
    GatheredRows,
    as_gathered,
    can_be_gathered,
    with_names,
)
from hatbus.data.loader_arguments import check_arguments
from hatbus.data.seeded import SeededCollate, SeededSamples, seed_of
from hatbus.data.workers import iterated
from hatbus.errors import DataError
from hatbus.parallel.launch import rank_and_world


class BatchOrder(Sampler[list[Any]]):
    """The index batches of one rank: a function of (seed, epoch), started at any batch.

    Args:
        length: samples in the data set.
        batch_size: samples per batch of one rank.
        shuffle: another order in every epoch; else the order of the data set.
        drop_last: leave out a last batch that is not full on every rank.
        seed: of the order; None: the run's.
        rank, world: this process and how many there are. Every rank gets equally many samples;
            the last ones are filled up from the front. The samples of one step over all ranks
            depend on batch_size * world alone, those that fill up the last one apart.
        with_epoch: give ``(epoch, index)`` in place of ``index``, as ``SeededSamples`` wants it.

    Attributes:
        fills: as said under ``world``. Otherwise every sample is on one rank only; the ranks still
            have equally many batches, unless a batch is one sample. Fewer samples than ranks are
            given to every rank.
        tells: whether the epoch goes with every index; else None does, as in a validation.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int | None = 0,
        rank: int = 0,
        world: int = 1,
        with_epoch: bool = False,
    ) -> None:
        if length < 1:
            raise DataError("the data set is empty; a loader needs at least one sample")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size!r}; accepted: 1 or more")
        self.length, self.batch_size = length, batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world, self.with_epoch = rank, world, with_epoch
        self.epoch = self.first = 0
        self.fills = self.tells = True

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        everywhere = self.batch_size * self.world
        return self.length // everywhere if self.drop_last else -(-self.length // everywhere)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration gives the order of ``epoch``, from its first batch on."""
        self.epoch, self.first = epoch, 0

    def __iter__(self) -> Iterator[list[Any]]:
        """The index batches of the epoch, from the position on that is set just now."""
        epoch, rest = self.epoch if self.tells else None, self.batches()[self.first :]
        if not self.with_epoch:
            return iter(rest)
        return ([(epoch, i) for i in found] for found in rest)

    def batches(self) -> list[list[int]]:
        """This rank's sample indices in this epoch, batch by batch."""
        indices, size, count = self.indices(), self.batch_size, len(self)
        if not self.fills and self.length < self.world:  # all of them are on every rank
            count = -(-self.length // size)
        found = [indices[start : start + size] for start in range(0, len(indices), size)][:count]
        last = found[-1] if found else []
        if len(found) < count and len(last) > 1:  # another rank has a sample more
            found[-1:] = [last[: len(last) // 2], last[len(last) // 2 :]]
        return found

    def indices(self) -> list[int]:
        """This rank's sample indices in this epoch."""
        order = list(range(self.length))
        if self.shuffle:
            chance = torch.Generator().manual_seed(seed_of("order", self.seed or 0, self.epoch))
            order = torch.randperm(self.length, generator=chance).tolist()
        if not self.fills:
            return order[self.rank :: self.world] if self.length >= self.world else order
        missing = -self.length % self.world
        order += (order * (missing // self.length + 1))[:missing]
        return order[self.rank :: self.world]


class ExactLoader(DataLoader[Any]):
    """A ``DataLoader`` that can be told where to start; see ``loader``."""

    _seedless: tuple[Any, ...] | None = None
    _adopted: int | None = None
    _gathered: Gathered | None = None
    """Makes the batches in place of torch's collation, where samples are rows of tensors."""

    def __iter__(self) -> Any:
        """The batches from the position on that is set just now."""
        if self._gathered is None:
            return super().__iter__()
        indices = list(self.order)
        order = torch.tensor(list(chain.from_iterable(indices)), dtype=torch.int64)
        return self._gathered.batches(order, list(map(len, indices)))

    @property
    def order(self) -> BatchOrder:
        """The order of the samples."""
        return cast(BatchOrder, self.batch_sampler)

    def adopt_seed(self, seed: int) -> None:
        """Takes the run's seed, unless it was given one of its own; the next run's in its turn."""
        if self._seedless is None:
            parts = (self.order, self.dataset)
            self._seedless = tuple(part for part in parts if getattr(part, "seed", 0) is None)
        for part in self._seedless:
            part.seed = seed
        if self._seedless and self._adopted != seed:  # persistent workers have the old one
            self._adopted, self._iterator = seed, None

    def set_position(self, epoch: int, batch: int) -> None:
        """The next iteration gives the batches of ``epoch`` from number ``batch`` on.

        A data set that has ``set_epoch`` is told, also below ``Subset`` and other wrappers, and in
        every worker.
        """
        if isinstance(self.dataset, SeededSamples):
            self.dataset.set_epoch(epoch)
        self._go_to(epoch, batch)

    def _go_to(self, epoch: int, batch: int) -> None:
        self.order.epoch, self.order.first = epoch, batch
        seed = seed_of("workers", self.order.seed or 0, epoch)
        cast(torch.Generator, self.generator).manual_seed(seed)

    def each_once(self, *, equal: bool = False) -> Iterator[Any]:
        """One pass that is always the same, with every sample on one rank only: for validation.

        Args:
            equal: every rank has to have equally many batches; where a batch is one sample, some
                are repeated for that.
        """
        for _, batch in self.numbered_once(equal=equal):
            yield batch

    def numbered_once(
        self, first: int = 0, *, equal: bool = False
    ) -> Iterator[tuple[list[int], Any]]:
        """The same pass with the places of each batch's samples in the data set.

        Args:
            first: number of the batch to begin with.
            equal: as in ``each_once``.
        """
        self._go_to(0, first)
        self.order.tells = False  # a training may be inside another epoch of the same data set
        self.order.fills = self.order.drop_last or (equal and self.order.batch_size == 1)
        try:
            yield from zip(self.order.batches()[first:], iterated(self), strict=False)
        finally:
            self.order.fills = self.order.tells = True

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        order = self.order
        return {
            "length": order.length,
            "global_batch_size": order.batch_size * order.world,
            "shuffle": order.shuffle,
            "drop_last": order.drop_last,
            "seed": order.seed,
        }

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.order)


def _collation(samples: Any, collate: Any) -> Any:
    """What makes a batch of samples; None: torch's own."""
    if isinstance(samples, GatheredRows):
        return as_gathered
    return None if collate is None else SeededCollate(collate, samples)


def loader(
    dataset: Dataset[Any] | Mapping[str, torch.Tensor],
    batch_size: int,
    *,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int | None = None,
    num_workers: int = 0,
    **options: Any,
) -> ExactLoader:
    """A ``torch.utils.data.DataLoader`` whose data is a function of (seed, epoch, position).

    Random augmentation inside the data set is seeded per sample (see ``SeededSamples``) and a
    ``collate_fn`` per batch, with any number of workers. A data set with ``set_epoch`` is told the
    epoch, in its workers too. Plain tensors (a ``TensorDataset``, a mapping from names to tensors,
    a ``Subset`` of one) draw nothing: without ``collate_fn`` a batch of them is gathered by index,
    which is many times as fast as collating samples and gives the same batch.

    Args:
        dataset: with ``__len__`` and ``__getitem__``; or tensors by name, each of shape
            ``[rows, ...]``, whose batches are dicts.
        batch_size: samples per batch of one process.
        shuffle: another order in every epoch.
        drop_last: leave out a last batch that is not full.
        seed: of order and augmentation; None: the run's.
        num_workers: worker processes.
        options: further arguments of ``DataLoader``.

    Raises:
        DataError: an argument that cannot be used, or a data set that is empty or has no length.
    """
    dataset = with_names(dataset)
    check_arguments(dataset, batch_size, num_workers, seed, options)
    rank, world = rank_and_world()
    collate = options.pop("collate_fn", None)
    draws = collate is not None or not can_be_gathered(dataset)
    order = BatchOrder(
        len(cast(Sized, dataset)),
        batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=seed,
        rank=rank,
        world=world,
        with_epoch=draws,
    )
    samples: Any = SeededSamples(dataset, seed) if draws else dataset
    if not draws and num_workers:
        samples = GatheredRows(dataset)
    try:
        made = ExactLoader(
            samples,
            batch_sampler=order,
            num_workers=num_workers,
            generator=torch.Generator(),
            collate_fn=_collation(samples, collate),
            **options,
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"torch's DataLoader refuses what hatbus.data.loader got: {error}"
        ) from None
    if not draws and not num_workers:
        made._gathered = Gathered(dataset, pinned=made.pin_memory)  # noqa: SLF001 - of this module
    return made
