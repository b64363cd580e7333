"""Randomness of data as a function of (seed, epoch, index), whichever process fetches a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils.data import Dataset, Subset, TensorDataset, get_worker_info

from hatbus import rng
from hatbus.data.epochs import listeners, tell_epoch

Place = tuple[int | None, int]
"""Epoch and sample index; no epoch where it means nothing, in a validation."""


def seed_of(*parts: object) -> int:
    """A 63-bit seed made of the parts; different parts give unrelated seeds."""
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class SeededSamples(Dataset[Any]):
    """A data set whose random augmentation is a function of (seed, epoch, index).

    Every sample starts from its own random state, so it does not matter which process fetches it,
    after which others, or whether the run was resumed. In the training process itself the random
    state is left as it was. A data set that reads whole batches (``__getitems__``) starts every
    batch from the random state of its first sample, so there the batch size counts too.

    Args:
        samples: the data set; it draws from ``random``, ``numpy.random`` or torch.
        seed: of the augmentation; None: the run's.

    Attributes:
        place: the first place of the batch that was read last.
    """

    tells_workers = True
    """Every place says its epoch, so that also workers that persist hear of it."""

    def __init__(self, samples: Any, seed: int | None = 0) -> None:
        self.samples, self.seed = samples, seed
        self.place: Place = (None, 0)
        self._draws = type(samples) is not TensorDataset
        self._told: int | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: Place) -> Any:
        """The sample at ``(epoch, index)``."""
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> Sequence[Any]:
        """The samples of a batch."""
        self.place = places[0]
        epoch = self.place[0]
        if epoch != self._told and epoch is not None and get_worker_info() is not None:
            self.set_epoch(epoch)
        if not self._draws:
            return [self.samples[index] for _, index in places]
        with _apart():
            if reads_batches(self.samples):
                rng.seed_all(seed_of("batch", self.seed or 0, *_seeding(self.place)))
                found: Sequence[Any] = self.samples.__getitems__([index for _, index in places])
                return found
            return [self._sample(place) for place in places]

    def set_epoch(self, epoch: int) -> None:
        """Tells it to every part of the data set that asks for it (``set_epoch``).

        What such a part draws for that is a function of (seed, epoch) too.
        """
        self._told = epoch
        if listeners(self.samples):
            with _apart():
                rng.seed_all(seed_of("epoch", self.seed or 0, epoch))
                tell_epoch(self.samples, epoch)

    def _sample(self, place: Place) -> Any:
        rng.seed_all(seed_of("sample", self.seed or 0, *_seeding(place)))
        return self.samples[place[1]]


class SeededCollate:
    """A collate function that starts every batch from a random state of the batch's own.

    Args:
        collate: a collate function.
        samples: the data set whose samples it gets.
    """

    def __init__(self, collate: Callable[[Any], Any], samples: SeededSamples) -> None:
        self.collate, self.samples = collate, samples

    def __call__(self, rows: Any) -> Any:
        """The batch."""
        with _apart():
            place = _seeding(self.samples.place)
            rng.seed_all(seed_of("collate", self.samples.seed or 0, *place))
            return self.collate(rows)


def reads_batches(samples: Any) -> bool:
    """Whether a data set has a ``__getitems__`` of its own; a ``Subset`` has that of its data."""
    while getattr(type(samples), "__getitems__", None) is Subset.__getitems__:
        samples = samples.dataset
    return callable(getattr(samples, "__getitems__", None))


def _seeding(place: Place) -> tuple[int, int]:
    """The numbers that seed a place; a validation is seeded as epoch 0."""
    return place[0] or 0, place[1]


@contextmanager
def _apart() -> Iterator[None]:
    """In the training process the random state stays as it was; in a worker nobody cares."""
    if get_worker_info() is not None:
        yield
        return
    with rng.fenced():
        yield
