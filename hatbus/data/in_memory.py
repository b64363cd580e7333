"""Tensors that lie in memory: a batch is gathered by index, not collated sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from hatbus.errors import DataError

_ACCEPTED: Final = "accepted: tensors that all have equally many rows"
_ROW_NUMBERS: Final = (torch.int64, torch.int32, torch.int16)
"""Types of indices; torch takes those of one byte for masks."""


class TensorMapping(Dataset[dict[str, torch.Tensor]]):
    """Tensors by name as a data set: sample ``i`` is a dict of each tensor's row ``i``.

    Args:
        tensors: each of shape ``[rows, ...]``, with the same number of rows.

    Raises:
        DataError: nothing in it, a value that is no tensor or has no rows, or unequal lengths.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)
        if not self.tensors:
            raise DataError(f"the mapping of tensors is empty; {_ACCEPTED}")
        for name, value in self.tensors.items():
            _check_rows(name, value)
        lengths = {name: len(value) for name, value in self.tensors.items()}
        first, rows = next(iter(lengths.items()))
        for name, found in lengths.items():
            if found != rows:
                raise DataError(f"{first!r} has {rows} rows and {name!r} has {found}; {_ACCEPTED}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[index] for name, value in self.tensors.items()}


class Gathered:
    """Batches of a data set of tensors, as torch's collation would make them.

    Args:
        dataset: a ``TensorDataset`` or ``TensorMapping``, or a ``Subset`` of one.
        pinned: batches in page-locked memory, from which a copy to the GPU does not wait.
    """

    def __init__(self, dataset: Any, *, pinned: bool = False) -> None:
        self._dataset = dataset
        self._pinned = pinned and torch.cuda.is_available()

    def batches(self, order: torch.Tensor, sizes: Sequence[int]) -> Iterator[Any]:
        """One batch after the other.

        Args:
            order: sample indices, ``[sum(sizes)]``, int64.
            sizes: samples per batch.
        """
        whole, rows = _resolved(self._dataset, order)
        if isinstance(whole, TensorMapping):
            names = list(whole.tensors)
            return self._gathered(
                list(whole.tensors.values()),
                rows,
                sizes,
                lambda found: dict(zip(names, found, strict=True)),
            )
        return self._gathered(list(whole.tensors), rows, sizes, None)

    def _gathered(
        self,
        tensors: list[torch.Tensor],
        rows: torch.Tensor,
        sizes: Sequence[int],
        shaped: Callable[[list[torch.Tensor]], Any] | None,
    ) -> Iterator[Any]:
        there = {one.device: torch.split(rows.to(one.device), list(sizes)) for one in tensors}
        columns = [there[one.device] for one in tensors]
        for each in zip(*columns, strict=True):
            batch = [one.index_select(0, at) for one, at in zip(tensors, each, strict=True)]
            if self._pinned:
                batch = [one if one.is_cuda else one.pin_memory() for one in batch]
            yield batch if shaped is None else shaped(batch)


class GatheredRows(Dataset[Any]):
    """The same for worker processes: a whole batch is one call, and its collation is done.

    Args:
        samples: the data set, as ``Gathered`` takes it.

    Raises:
        DataError: its tensors require gradients, which no worker can hand over.
    """

    def __init__(self, samples: Any) -> None:
        if any(one.requires_grad for one in _columns_of(samples)):
            raise DataError(
                "the data set's tensors require gradients, which do not flow out of a worker "
                "process; detach them, or give num_workers=0"
            )
        self.samples = samples
        self._gathered = Gathered(samples)

    @property
    def tensors(self) -> Any:
        """Those of the data set."""
        return self.samples.tensors

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]

    def __getitems__(self, indices: list[int]) -> Any:
        """The batch of these samples, as ``as_gathered`` takes it."""
        order = torch.tensor(indices, dtype=torch.int64)
        return next(self._gathered.batches(order, [len(indices)]))


def as_gathered(batch: Any) -> Any:
    """The collate function of ``GatheredRows``: there is nothing left to do."""
    return batch


def can_be_gathered(dataset: Any) -> bool:
    """Whether a data set is plain tensors in memory: nothing is computed per sample."""
    while type(dataset) is Subset:
        if not _are_rows(dataset.indices):
            return False
        dataset = dataset.dataset
    if type(dataset) not in (TensorDataset, TensorMapping):
        return False
    return all(
        type(one) is torch.Tensor and one.layout == torch.strided and not one.is_nested
        for one in _columns_of(dataset)
    )


def with_names(dataset: Any) -> Any:
    """A mapping from names to tensors as a data set; any other data set as it is."""
    is_named = isinstance(dataset, Mapping) and all(isinstance(name, str) for name in dataset)
    return TensorMapping(dataset) if is_named else dataset


def _columns_of(dataset: Any) -> list[Any]:
    """The tensors of a data set, also of one below subsets."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    tensors = dataset.tensors
    return list(tensors.values() if isinstance(tensors, Mapping) else tensors)


def _are_rows(indices: Any) -> bool:
    """Whether the indices of a subset are whole numbers, each of one row."""
    if not isinstance(indices, (list, tuple, range)) and not hasattr(indices, "__array__"):
        return False
    try:
        found = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError):
        return False
    kind = found.dtype
    return found.dim() == 1 and not (
        kind.is_floating_point or kind.is_complex or kind.itemsize == 1
    )


def _resolved(dataset: Any, order: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The tensors below subsets, and the rows of them that the indices mean."""
    while type(dataset) is Subset:
        order = _picked(dataset.indices, order)
        dataset = dataset.dataset
        order = _from_the_front(order, len(dataset))
    return dataset, order


def _picked(indices: Any, order: torch.Tensor) -> torch.Tensor:
    """Some of a subset's indices; a long list is not turned into a tensor for the sake of a few."""
    if len(order) < len(indices) and not hasattr(indices, "dtype"):
        return torch.tensor([indices[place] for place in order.tolist()], dtype=torch.int64)
    return torch.as_tensor(indices, dtype=torch.int64)[order]


def _from_the_front(order: torch.Tensor, rows: int) -> torch.Tensor:
    """The same rows by numbers of 0 and more.

    Raises:
        IndexError: there is no such row; on a GPU nobody would say so in words.
    """
    wrong = order[(order < -rows) | (order >= rows)]
    if len(wrong):
        raise IndexError(f"a subset has index {int(wrong[0])} of a data set of {rows} rows")
    return torch.where(order < 0, order + rows, order)


def _check_rows(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        hint = "; torch.as_tensor makes one of it" if hasattr(value, "__array__") else ""
        raise DataError(f"{name!r} is of type {type(value).__name__}; {_ACCEPTED}{hint}")
    if not value.dim():
        raise DataError(f"{name!r} is a tensor without rows; {_ACCEPTED}")
