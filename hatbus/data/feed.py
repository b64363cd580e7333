"""One task's loader: its passes, its position, and moving batches to the device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from hatbus import rng
from hatbus.data.epochs import listeners, tell_epoch
from hatbus.data.moving import is_pinned, moved_ahead, to_device
from hatbus.data.stateful import (
    forget_restored,
    gives_nothing_at_its_end,
    new_pass,
    recall_epoch,
    rest_of_pass,
)
from hatbus.data.workers import iterated, keeps_workers, starts_workers
from hatbus.errors import DataError
from hatbus.log import log

PASS_STRIDE = 1_000_003
"""Added to the epoch for every further pass over a loader within one epoch."""


class Feed:
    """Batches of one loader, pass after pass.

    How a run finds its place again, best first:

    * a loader with ``set_position(epoch, batch)`` (``hatbus.data.loader``) is told where to start;
    * one with ``state_dict`` and ``load_state_dict`` gets its own state back;
    * any other is iterated again from the random state that the pass began with, and the batches
      behind us are thrown away, with a note.

    Attributes:
        name: how messages call the loader.
        length: batches in one pass; None when the loader has no length.
        taken: batches of the present pass that were handed out.
    """

    def __init__(self, loader: Any, task: str | None, device: Any = None) -> None:
        self.loader = loader
        self.name = "the loader" if task is None else f"the loader of task {task!r}"
        self.length = length_of(loader)
        if self.length == 0:
            raise DataError(f"{self.name} has length 0; check its data set, batch size, drop_last")
        self.taken = 0
        self._device = device if device is not None and str(device) != "cpu" else None
        self._positions = hasattr(loader, "set_position")
        self._stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self._epoch = self._pass = 0
        self._iterator: Iterator[Any] | None = None
        self._began: dict[str, Any] = {}
        self._left = False
        self._resumed: dict[str, Any] | None = None
        self._rest = ""
        self._is_told = self._told_workers = self._ended = False
        self._started: bool | None = None

    def start(self, epoch: int, behind: int, group: int) -> None:
        """Goes to a place in an epoch; once after ``load_state_dict``, to the place in the state.

        Args:
            epoch: the epoch.
            behind: batches of this epoch that lie behind us, whole groups counted in full.
            group: batches per group; a pass's last group may have been smaller.
        """
        self._left = self._is_left()
        if self._left and self._stateful and self._resumed is None:
            forget_restored(self.loader)
        self._epoch, self._pass, self.taken = epoch, 0, behind
        if self.length is not None:
            per_pass = -(-self.length // group)
            self._pass, groups = divmod(behind // group, per_pass)
            self.taken = groups * group
        if self._resumed is not None:
            self._pass, self.taken = self._resumed["pass"], self._resumed["taken"]
        self._iterator, self._began = None, {}

    def fetch(self) -> Iterator[Any]:
        """The rest of the present pass, batch by batch, on the device."""
        iterator = self._open()
        self._ended = False
        if self._device is None:
            return iterator
        device = self._device
        if self._positions and torch.device(device).type == "cuda":  # its place is no iterator's
            return self._ahead_if_pinned(iterator, torch.device(device))
        return (to_device(batch, device) for batch in iterator)

    @staticmethod
    def _ahead_if_pinned(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
        first = list(islice(batches, 1))
        if first and is_pinned(first[0]):
            yield from moved_ahead(chain(first, batches), device)
            return
        for batch in chain(first, batches):
            yield to_device(batch, device)

    def close(self) -> None:
        """Ends the present iteration."""
        self._iterator = None

    def end_pass(self) -> None:
        """The present pass is at its end; says so once where it was not of the loader's length.

        With a state of its own a loader may go on with a pass that was left: that one is shorter.
        """
        if self.length in (None, self.taken) or self._stateful or self._is_told:
            return
        self._is_told = True
        log.warning(
            "%s gave %d batches in epoch %d, but its length is %d, which schedules and the planned "
            "number of steps go by",
            self.name,
            self.taken,
            self._epoch,
            self.length,
        )

    def open_again(self) -> None:
        """Goes on in the pass that a resumed run was in; nothing if it was in none."""
        if self._resumed is not None and self._resumed["open"]:
            self._iterator = self.fetch()
        self.forget_resume()

    def forget_resume(self) -> None:
        """The saved place was reached."""
        self._resumed = None

    def group(self, size: int, *, endless: bool) -> list[Any]:
        """Up to ``size`` batches of one pass; a new pass is begun when this one is over.

        Args:
            size: batches wanted.
            endless: begin a new pass at the end; otherwise the end gives an empty list.
        """
        if self._iterator is None:
            self._iterator = self.fetch()
        found = list(islice(self._iterator, size))
        self._ended = len(found) < size
        if not found and endless:
            self.end_pass()
            self._pass, self.taken = self._pass + 1, 0
            self._iterator = self.fetch()
            found = list(islice(self._iterator, size))
            if not found:
                raise DataError(f"{self.name} gave no batch in its pass {self._pass + 1}")
        self.taken += len(found)
        return found

    # ---- state --------------------------------------------------------------------------------

    def state_dict(self, *, inside: bool) -> dict[str, Any]:
        """Where this loader stands, counted by the batches handed out and not by those prefetched.

        Args:
            inside: whether the run is inside an epoch; between two, every pass is over.
        """
        is_open = inside and bool(self._began)
        place = (self._pass, self.taken) if inside else (0, 0)
        state: dict[str, Any] = {"open": is_open, "pass": place[0], "taken": place[1]}
        if self._stateful and not self._positions:
            state["loader"] = self.loader.state_dict()
            state["left"], state["ended"] = self._is_left(), self._ended
        elif not self._positions:
            state["began"] = self._began if is_open else self._now()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a saved place; the next ``start`` and ``open_again`` go there."""
        self._resumed = state
        if "loader" in state and self._stateful:
            self.loader.load_state_dict(state["loader"])
            recall_epoch(self.loader, state["loader"])
            if not state["open"]:
                self._left = state["left"]
                self._rest = "left" if self._left else "over"
        elif "began" in state:
            self._set_generators(state["began"]["generators"])
            self._started = state["began"].get("starts_workers")

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        if hasattr(self.loader, "identity"):
            found: dict[str, Any] = self.loader.identity()
            return found
        size = getattr(self.loader, "batch_size", None)
        return {"batches": self.length, "batch_size": size if isinstance(size, int) else None}

    def _is_left(self) -> bool:
        """Whether the last pass that was begun was not read to its end."""
        if not self._began:
            return self._left
        return self.length is not None and self.taken not in (0, self.length)

    def _set_generators(self, saved: list[torch.Tensor]) -> None:
        for generator, one in zip(generators_of(self.loader), saved, strict=False):
            generator.set_state(one)

    def _generator_states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in generators_of(self.loader)]

    def _now(self) -> dict[str, Any]:
        """What a pass that begins now depends on, beside the random state of the process."""
        starts = starts_workers(self.loader) or self._has_deaf_workers()
        return {"generators": self._generator_states(), "starts_workers": starts}

    def _open(self) -> Iterator[Any]:
        """A new iteration over the loader, the batches behind us left out."""
        key = self._epoch + self._pass * PASS_STRIDE
        if self._positions:
            self._began = {"positioned": True}
            self.loader.set_position(key, self.taken)
            return iterated(self.loader)
        resumed = self._resumed or {}
        if "loader" in resumed or self._rest:
            tell_epoch(self.loader, key)
            self._began = {"stateful": True}
            return self._new_pass() if self._rest else self._rest_of_pass()
        self._begin(resumed.get("began") or {}, key)
        return self._replayed(iterated(self.loader))

    def _begin(self, began: dict[str, Any], key: int) -> None:
        """Brings about what a pass begins with: random state, epoch, workers, generators.

        Args:
            began: what the pass began with that a resumed run was in; empty of a new one.
            key: the epoch; the parts that are told of it may draw random numbers.
        """
        before = began.get("rng")
        if before is not None:
            rng.restore(before)
        start = rng.capture() if before is None else before
        if tell_epoch(self.loader, key):
            self._renew_workers()
        self._start_workers_as_before()
        if before is None:
            self._began = {"rng": start, **self._now()}
        else:
            self._set_generators(began["generators"])  # another loader may share them
            self._began = began

    def _renew_workers(self) -> None:
        """Starts persistent workers anew where their copy of the data set wants to know the epoch.

        Nobody can tell them; ``hatbus.data.loader`` says the epoch with every sample.
        """
        if not self._has_deaf_workers():
            return
        if self.loader._iterator is not None and not self._told_workers:  # noqa: SLF001 - see below
            self._told_workers = True
            log.warning(
                "%s has workers that persist, which nobody can tell the epoch that its data set "
                "asks for (set_epoch): they are started anew in every epoch; hatbus.data.loader "
                "keeps them",
                self.name,
            )
        self.loader._iterator = None  # noqa: SLF001 - torch has no other way

    def _has_deaf_workers(self) -> bool:
        if not keeps_workers(self.loader):
            return False
        dataset = self.loader.dataset
        return not hasattr(dataset, "tells_workers") and bool(listeners(dataset))

    def _start_workers_as_before(self) -> None:
        """The next pass starts persistent workers if it did so in the run that is gone on with.

        torch draws a random number more in that pass than in later ones.
        """
        wanted, self._started = self._started, None
        starts = starts_workers(self.loader)
        if wanted is None or wanted == starts or self._has_deaf_workers():
            return
        if wanted:
            self.loader._iterator = None  # noqa: SLF001 - torch has no other way
            return
        generators = self._generator_states()
        with rng.fenced():
            iterated(self.loader)
        self._set_generators(generators)

    def _rest_of_pass(self) -> Iterator[Any]:
        """What a stateful loader has still to give of the pass that a resumed run was in.

        Nothing, if the run was saved after its last batch: to many a loader that state means a new
        pass (litdata).
        """
        is_over = self.taken == self.length and not gives_nothing_at_its_end(self.loader)
        if is_over or (self._resumed or {}).get("ended"):
            self._rest = "over"
            return iter(())
        return rest_of_pass(self.loader)

    def _new_pass(self) -> Iterator[Any]:
        """A new pass of a loader whose loaded state is of the pass before."""
        rest, self._rest = self._rest, ""
        return new_pass(self.loader, was_left=rest == "left")

    def _replayed(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """The iterator, behind the batches that were taken already.

        Raises:
            DataError: it ended before that.
        """
        if self.taken:
            log.info("%s cannot be positioned: replaying %d batches", self.name, self.taken)
            found = sum(1 for _ in islice(iterator, self.taken))
            if found < self.taken:
                raise DataError(
                    f"{self.name} gave {found} batches in epoch {self._epoch}, but {self.taken} of "
                    "them are behind the run; the data is not what it was: start a new run"
                )
        return iterator


def generators_of(loader: Any) -> list[torch.Generator]:
    """The random generators of a loader's own: its and its samplers', each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = (
        loader,
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    )
    found = [getattr(part, "generator", None) for part in parts]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def gives_all_to_each(loader: Any) -> bool:
    """Whether every process that has this loader reads all samples of its data set.

    That is so of a ``DataLoader`` with torch's own samplers, which know of no other process.
    """
    if not isinstance(loader, DataLoader):
        return False
    batch_sampler = loader.batch_sampler
    if type(batch_sampler) not in {BatchSampler, type(None)}:
        return False
    sampler = loader.sampler if batch_sampler is None else getattr(batch_sampler, "sampler", None)
    return type(sampler) in {SequentialSampler, RandomSampler, WeightedRandomSampler}


def length_of(loader: Any) -> int | None:
    """Batches in one pass, or None.

    Raises:
        DataError: what was given cannot be iterated.
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise DataError(f"{loader!r} is no loader; accepted: an iterable of batches")
    if is_used_up(loader):
        raise DataError(
            f"a {type(loader).__name__} can be passed over only once; give an object whose "
            "__iter__ starts anew"
        )
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # torch raises the first, a class of one's own either
        return None


def is_used_up(loader: Any) -> bool:
    """Whether a pass uses a loader up: a generator, ``zip``, ``map``, ``iter(...)`` and their like.

    A class in Python may return itself from ``__iter__`` and begin anew by that.
    """
    if isinstance(loader, _BaseDataLoaderIter):
        return True
    own = getattr(type(loader), "__iter__", None)
    is_of_python = inspect.isfunction(own)
    return hasattr(loader, "__next__") and not is_of_python and iter(loader) is loader
