"""Loaders that keep their place themselves: the rest of a pass, and a new one after it.

Each library has its own idea of what its state means at a pass's end, and of when a pass begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from hatbus import rng
from hatbus.data.workers import iterated


def rest_of_pass(loader: Any) -> Iterator[Any]:
    """What a loader has still to give of the pass that its loaded state is in.

    One that looks ahead for a new pass (``torchdata.nodes``) is asked not to.
    """
    if not getattr(loader, "restart_on_stop_iteration", False):
        return _gone_on_with(loader)
    loader.restart_on_stop_iteration = False
    try:
        return _gone_on_with(loader)
    finally:
        loader.restart_on_stop_iteration = True


def new_pass(loader: Any, *, was_left: bool) -> Iterator[Any]:
    """A new pass of a loader whose loaded state is of the pass before.

    Args:
        loader: with that state.
        was_left: whether that pass was left early, which must not be gone on with; one that was
            over may show as an empty one.
    """
    if was_left:
        if not forget_restored(loader):
            with rng.fenced():
                iterated(loader)
        return iterated(loader)
    before = rng.capture()
    iterator = iterated(loader)
    first = list(islice(iterator, 1))
    if first:
        return chain(first, iterator)
    rng.restore(before)  # the empty rest is of a pass that has drawn its numbers long ago
    return iterated(loader)


def forget_restored(loader: Any) -> bool:
    """Lets litdata's loader begin a new pass though one that it was to go on with was left.

    It goes on with that one until it was read to its end.

    Returns:
        Whether it is litdata's.
    """
    if not isinstance(getattr(loader, "restore", None), bool):
        return False
    loader.restore = False
    return True


def recall_epoch(loader: Any, state: Any) -> None:
    """Tells a data set of mosaicml-streaming its epoch again: it drops a state older than that.

    So it is in a second ``fit``, where the loader has counted on already.
    """
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(type(dataset), "next_epoch") and isinstance(state, Mapping) and "epoch" in state:
        dataset.next_epoch = state["epoch"]


def gives_nothing_at_its_end(loader: Any) -> bool:
    """Whether a loader that goes on after a pass's last batch gives an empty rest, as it should.

    So its length may be an estimate: what it has beyond that is not lost.
    """
    return any(cls.__name__ == "StatefulDataLoader" for cls in type(loader).__mro__)


def _gone_on_with(loader: Any) -> Iterator[Any]:
    """An iteration that draws nothing which the run had drawn before it was stopped.

    torch's ``DataLoader`` draws a seed as a pass begins. Where ``__iter__`` is a generator, as of
    litdata and mosaicml-streaming, that is with the first batch: after the random state was put
    back.
    """
    iterator = iterated(loader)
    if not inspect.isgenerator(iterator) or getattr(loader, "generator", True) is not None:
        return iterator
    return _begun_aside(loader, iterator) if isinstance(loader, DataLoader) else iterator


def _begun_aside(loader: DataLoader[Any], iterator: Iterator[Any]) -> Iterator[Any]:
    loader.generator = torch.Generator()
    try:
        first = list(islice(iterator, 1))
    finally:
        loader.generator = None
    yield from first
    yield from iterator
