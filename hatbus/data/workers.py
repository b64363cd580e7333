"""Worker processes of loaders: whose they are, and that they are deaf to the run's signals."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from hatbus.loop import signals


def iterated(loader: Any) -> Iterator[Any]:
    """``iter(loader)``, whose worker processes are deaf to the signals that the run serves.

    Else one to the whole process group (Ctrl-C, a scheduler's SIGTERM) would end the workers, and
    with them the step or validation that was to be finished.
    """
    with _deaf_workers(loader):
        iterator: Iterator[Any] = iter(loader)
    if inspect.isgenerator(iterator) and _has_workers(loader):
        return _first_held(loader, iterator)
    return iterator


def keeps_workers(loader: Any) -> bool:
    """Whether a loader, torch's own, has one iterator, whose workers all passes share."""
    return isinstance(loader, DataLoader) and loader.persistent_workers


def starts_workers(loader: Any) -> bool:
    """Whether the next pass over a loader starts workers that later passes keep."""
    return keeps_workers(loader) and loader._iterator is None  # noqa: SLF001 - torch has no other way


def own_iteration(loader: Any) -> Any:
    """The loader, to be iterated while another iteration over it is under way.

    A ``DataLoader`` with persistent workers has one iterator, which begins anew for whoever asks;
    of such a one this is a copy, with the same data set and samplers, and workers of its own.
    """
    if not keeps_workers(loader):
        return loader
    other = copy.copy(loader)
    other._iterator = None  # noqa: SLF001 - torch has no other way
    return other


def _first_held(loader: Any, iterator: Iterator[Any]) -> Iterator[Any]:
    """A generator starts its workers when the first batch is asked for."""
    with _deaf_workers(loader):
        first = list(islice(iterator, 1))
    yield from first
    yield from iterator


@contextmanager
def _deaf_workers(loader: Any) -> Iterator[None]:
    if not _has_workers(loader):
        with signals.held():
            yield
        return
    context = getattr(loader, "multiprocessing_context", None) or multiprocessing
    own = loader.worker_init_fn
    loader.worker_init_fn = signals.Deaf(own)
    try:
        with signals.held(context.get_start_method()):
            yield
    finally:
        loader.worker_init_fn = own


def _has_workers(loader: Any) -> bool:
    return bool(getattr(loader, "num_workers", 0)) and hasattr(loader, "worker_init_fn")
