"""Which loaders were given, and one pass over each: every sample once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import torch
from torch.utils.data.distributed import DistributedSampler

from hatbus.data import generators_of, iterated, length_of, own_iteration, to_device, with_data_wait
from hatbus.discovery import build, is_config
from hatbus.errors import DataError, PluginError
from hatbus.log import log

if TYPE_CHECKING:
    from hatbus import Context

Batches = list[tuple[str | None, Any, float]]


class Source(NamedTuple):
    """One validation run's data: its name ("" for the only one), and a loader per task."""

    name: str
    loaders: Mapping[str | None, Iterable[Any]]


def sources(given: Any, tasks: Sequence[str]) -> list[Source]:
    """The validation runs that the given loaders make.

    Args:
        given: a loader; several, as a list or as a mapping from names; or ``{task: loader}``.
        tasks: of the training run.

    Returns:
        One source per loader; ``{task: loader}`` makes one source of all its loaders.

    Raises:
        PluginError: task names and other names are mixed, or there is no loader.
    """
    if isinstance(given, Mapping):
        return _of_mapping(given, tasks)
    if isinstance(given, (list, tuple)) and given and all(map(is_loader, given)):
        return [
            Source(str(n) if len(given) > 1 else "", {None: one}) for n, one in enumerate(given)
        ]
    if isinstance(given, (list, tuple)) and not given:
        raise PluginError("validation: data_loader is empty; accepted: a loader or several")
    return [Source("", {None: given})]


def is_loader(thing: Any) -> bool:
    """Whether something in a list is a loader rather than a batch."""
    if isinstance(thing, list):
        return bool(thing) and not any(isinstance(one, torch.Tensor) for one in thing)
    is_batch = isinstance(thing, (torch.Tensor, tuple, Mapping, str))
    return not is_batch and hasattr(thing, "__iter__")


def _of_mapping(given: Mapping[Any, Any], tasks: Sequence[str]) -> list[Source]:
    if not given:
        raise PluginError("validation: data_loader is empty; accepted: a loader or several")
    bound = [name for name in given if name in tasks]
    if len(bound) == len(given):
        return [Source("", dict(given))]
    if bound:
        others = ", ".join(repr(name) for name in given if name not in tasks)
        raise PluginError(
            f"validation: data_loader mixes tasks ({', '.join(map(repr, bound))}) with other names "
            f"({others}); accepted: only tasks of the run, or only names of your own"
        )
    return [Source(str(name), {None: one}) for name, one in given.items()]


def built_loaders(given: Any) -> Any:
    """The loaders; a config, a list or a mapping of configs is built."""
    held = given.values() if isinstance(given, Mapping) else given
    is_many = isinstance(given, (Mapping, list, tuple)) and bool(given)
    if is_config(given) or (is_many and all(map(is_config, held))):
        return build(given, "validation: data_loader")
    return given


class Passes:
    """Steps of one batch each: one pass over every loader, task after task.

    Args:
        source: the loaders.
        device: where batches are moved.
        equal: every rank has to have equally many batches, because the model's forward pass is a
            common one (its parameters are sharded).
        training: the loaders of the training, whose iterations go on after a validation.

    Attributes:
        tasks: of the loaders, in their order; empty without tasks.
        loader: what was given: a loader, or ``{task: loader}``.
        times_waits: whether ``ctx.data_wait`` is kept; a plugin that reads it says so.
        limit: batches of each loader at most; None: all of them.

    Raises:
        DataError: something is no loader, or its length is 0.
        PluginError: a loader that keeps its place itself is the training's.
    """

    def __init__(
        self,
        source: Source,
        device: torch.device,
        *,
        equal: bool = False,
        training: Iterable[Any] = (),
    ) -> None:
        self.tasks = tuple(task for task in source.loaders if task is not None)
        self.loader: Any = dict(source.loaders) if self.tasks else source.loaders[None]
        self.times_waits = False
        self.limit: int | None = None
        trained = {id(one) for one in training}
        for one in source.loaders.values():
            refuse_common_place(one, training)
        self._loaders = {
            task: own_iteration(one) if id(one) in trained else one
            for task, one in source.loaders.items()
        }
        self._source, self._equal = source, equal
        self._device = device
        self._lengths = [length_of(one) for one in source.loaders.values()]
        for task, length in zip(source.loaders, self._lengths, strict=True):
            if length == 0:
                raise DataError(f"{self._called(task)} has length 0; check its data set")
        for task, one in source.loaders.items():
            self._warn_of_repeats(task, one)

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in all; None when a loader has no length."""
        known = [length for length in self._lengths if length is not None]
        if self.limit is not None:
            known = [min(length, self.limit) for length in known]
        return sum(known) if len(known) == len(self._lengths) else None

    def fenced(self) -> AbstractContextManager[None]:
        """The loaders' own random generators are afterwards as before: training may share them."""
        given = [one for one in self._loaders.values() if type(one) is not list]
        return self._fenced(given) if given else nullcontext()

    @contextmanager
    def _fenced(self, loaders: Iterable[Any]) -> Iterator[None]:
        kept = [(one, one.get_state()) for loader in loaders for one in generators_of(loader)]
        try:
            yield
        finally:
            for one, state in kept:
                one.set_state(state)

    def steps(self, ctx: Context) -> Iterator[Batches]:
        """Every batch once.

        Raises:
            DataError: a loader gave no batch.
        """
        return with_data_wait(self._steps(), ctx) if self.times_waits else self._steps()

    def batches(self) -> Iterator[Any] | None:
        """Every batch once, where each is a step by itself: of one loader, whose waits none times.

        Where it gives no batch, ``refuse_empty`` is to be called.
        """
        if self.tasks or self.times_waits:
            return None
        found = self._batches(self._loaders[None])
        return found if self.limit is None else islice(found, self.limit)

    def refuse_empty(self, task: str | None = None) -> NoReturn:
        """Says that a loader gave no batch.

        Raises:
            DataError: it did not.
        """
        raise DataError(f"{self._called(task)} gave no batch; check its data set")

    def _steps(self) -> Iterator[Batches]:
        for task, loader in self._loaders.items():
            batches: Batches = []
            for batch in islice(self._batches(loader), self.limit):
                batches = [(task, batch, 1.0)]
                yield batches
            if not batches:
                self.refuse_empty(task)

    def _batches(self, loader: Any) -> Iterator[Any]:
        """A pass from the start, in the same order every time where the loader can be told.

        Over several ranks ``hatbus.data.loader`` gives every sample to one rank, with no sample
        repeated to fill up.
        """
        if type(loader) is list:
            found = iter(loader)
            return found if self._device.type == "cpu" else self._moved(found)
        if hasattr(loader, "each_once"):
            loader = loader.each_once(equal=self._equal)
        elif hasattr(loader, "set_position"):
            loader.set_position(0, 0)
        batches = iterated(loader)
        return batches if self._device.type == "cpu" else self._moved(batches)

    def _moved(self, batches: Iterator[Any]) -> Iterator[Any]:
        return (to_device(batch, self._device) for batch in batches)

    def _warn_of_repeats(self, task: str | None, loader: Any) -> None:
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
            return
        repeated = sampler.total_size - len(cast(Sized, sampler.dataset))
        if repeated and sampler.rank == 0:
            log.warning(
                "%s counts %d samples twice, which its DistributedSampler repeats so that ranks "
                "have equally many; hatbus.data.loader gives each once",
                self._called(task),
                repeated,
            )

    def _called(self, task: str | None) -> str:
        name = task or self._source.name
        return f"the validation loader {name!r}" if name else "the validation loader"


def refuse_common_place(loader: Any, training: Iterable[Any]) -> None:
    """Refuses a loader whose place in the data is the training's too: each would move the other.

    Raises:
        PluginError: which, of what library, and what to do.
    """
    for trained in training:
        theirs, mine = keeper_of_place(trained), keeper_of_place(loader)
        if mine is not None and mine is theirs:
            library = type(mine).__module__.partition(".")[0]
            raise PluginError(
                f"validation: the loader's {type(mine).__name__} ({library}) is the training's, "
                "and keeps its place itself (state_dict); give the validation one of its own"
            )


def keeper_of_place(loader: Any) -> Any:
    """What of a loader keeps its place itself: its data set, or the loader; else None."""
    if not hasattr(loader, "state_dict") or not hasattr(loader, "load_state_dict"):
        return None
    dataset = getattr(loader, "dataset", None)
    return dataset if hasattr(dataset, "load_state_dict") else loader
