"""What ``hatbus.data.loader`` accepts, said in one line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from torch.utils.data import DataLoader, IterableDataset

from hatbus.errors import DataError, did_you_mean

_OWN: Final = ("sampler", "batch_sampler", "generator")
"""What decides on the order, which the loader does itself."""
_ITS_OWN_WORDS: Final = {"dataset", "batch_size", "shuffle", "drop_last", "num_workers", "self"}
_ELSEWHERE: Final = "give the run a torch.utils.data.DataLoader, which a resume goes through again"


def check_arguments(
    dataset: Any, batch_size: Any, num_workers: Any, seed: Any, options: Mapping[str, Any]
) -> None:
    """Refuses arguments of ``hatbus.data.loader`` that cannot be used.

    Raises:
        DataError: which, and what to do.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{kind} gives its samples one after the other; hatbus.data.loader needs a data set "
            f"with __len__ and __getitem__; of this one {_ELSEWHERE}"
        )
    if not hasattr(dataset, "__len__"):
        raise DataError(f"{kind} has no length; hatbus.data.loader needs a data set that has one")
    if batch_size is None:
        raise DataError(
            "batch_size is None; accepted: 1 or more; if every item of the data set is a batch "
            f"already, {_ELSEWHERE}"
        )
    _whole("batch_size", batch_size, 1)
    _whole("num_workers", num_workers, 0)
    if seed is not None:
        _whole("seed", seed, None)
    for name, value in options.items():
        _check_option(name, value)


def _whole(name: str, value: Any, least: int | None) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least):
        accepted = "a whole number, or None" if least is None else f"{least} or more"
        raise DataError(f"{name} is {value!r}; accepted: {accepted}")


def _check_option(name: str, value: Any) -> None:
    if name in _OWN and value is not None:
        raise DataError(
            f"hatbus.data.loader has an order of its own, so it takes no {name}=; with one, "
            f"{_ELSEWHERE}"
        )
    if name == "in_order" and not value:
        raise DataError(
            "in_order=False lets the workers race, so no resume could tell which samples are "
            "behind it; leave it out of hatbus.data.loader"
        )
    known = set(inspect.signature(DataLoader.__init__).parameters) - _ITS_OWN_WORDS
    if name not in known:
        hint = did_you_mean(name, known - set(_OWN))
        raise DataError(f"hatbus.data.loader: unknown option {name!r}{hint}")
