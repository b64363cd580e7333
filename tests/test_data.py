"""Data as a function of (seed, epoch, position): order, augmentation, finding the place again."""

from __future__ import annotations

import random
from collections import UserDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import hearing, tiny_trainer
from torch.nn.utils import rnn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from hatbus import BatchProcessor, Trainer, hookimpl, rng
from hatbus.data import BatchOrder, ExactLoader, loader
from hatbus.errors import DataError, JobError
from hatbus.feed import Feed, moved
from hatbus.task_sampler import AllTasks


class Noisy(Dataset[Any]):
    """Every sample is its index and three random numbers."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.rand(), float(torch.rand(()))])


class Drawing(Dataset[Any]):
    """Samples without noise, of a loader that hatbus cannot position."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> float:
        return float(index)


def epoch_of(data: ExactLoader, epoch: int, first: int = 0) -> list[torch.Tensor]:
    data.set_position(epoch, first)
    return list(data)


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.equal(y) for x, y in zip(a, b, strict=True))


def test_an_epoch_holds_every_sample_once_in_another_order_each_time() -> None:
    data = loader(Noisy(), 3)
    orders = [torch.cat(epoch_of(data, e))[:, 0].tolist() for e in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_the_same_from_any_position_and_with_any_number_of_workers(
    workers: int,
) -> None:
    whole = epoch_of(loader(Noisy(), 3), 4)
    data = loader(Noisy(), 3, num_workers=workers)
    for first in (0, 1, 3):
        assert equal(epoch_of(data, 4, first), whole[first:])


def test_augmentation_differs_between_epochs_samples_and_seeds() -> None:
    plain = {
        (seed, epoch): torch.cat(epoch_of(loader(Noisy(), 3, shuffle=False, seed=seed), epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    noise = torch.cat([found[:, 1:].reshape(-1) for found in plain.values()])
    assert len(set(noise.tolist())) == len(noise)


def test_reading_augmented_data_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate()
    epoch_of(loader(Noisy(), 3), 0)
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]


def test_a_loader_without_a_seed_takes_the_runs() -> None:
    data, own = loader(Noisy(), 3), loader(Noisy(), 3, seed=5)
    for one in (data, own):
        one.adopt_seed(8)
    assert (data.order.seed, own.order.seed) == (8, 5)
    assert equal(epoch_of(data, 0), epoch_of(loader(Noisy(), 3, seed=8), 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_of_two_trainers_reads_a_common_loader_by_its_own_seed(workers: int) -> None:
    def samples(data: Any, seed: int) -> list[list[float]]:
        return [batch for _, batch, _ in seen_in_fits(lambda: data, 4, seed=seed)]

    data = loader(Noisy(), 3, num_workers=workers, persistent_workers=workers > 0)
    for seed in (0, 1, 0):
        assert samples(data, seed) == samples(loader(Noisy(), 3), seed)


@pytest.mark.parametrize("world", [2, 4])
def test_the_samples_of_a_step_do_not_depend_on_the_number_of_processes(world: int) -> None:
    one = BatchOrder(16, 8, seed=3)
    many = [BatchOrder(16, 8 // world, seed=3, rank=r, world=world) for r in range(world)]
    for whole, *parts in zip(one, *many, strict=True):
        assert sorted(whole) == sorted(i for part in parts for i in part)


@pytest.mark.parametrize("length", [14, 15, 16, 17])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_steps_of_an_epoch_do_not_depend_on_the_number_of_processes(
    length: int, drop_last: bool
) -> None:
    found = []
    for world in (1, 2, 4):
        options: dict[str, Any] = {"drop_last": drop_last, "world": world}
        ranks = [list(BatchOrder(length, 8 // world, rank=r, **options)) for r in range(world)]
        full = [sorted(i for part in parts for i in part) for parts in zip(*ranks, strict=True)]
        found.append((len(full), full[: length // 8]))
    assert found[1:] == found[:1] * 2
    assert found[0][0] == (length // 8 if drop_last else -(-length // 8))


def data_of(length: int, batch_size: int, rank: int, world: int) -> ExactLoader:
    """The loader that a rank has of so many samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hatbus.data.rank_and_world", lambda: (rank, world))
        return loader(TensorDataset(torch.arange(length)), batch_size)


@pytest.mark.parametrize("length", [1, 3, 8, 9, 10, 16, 17, 33])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a_pass_over_each_once_has_every_sample_on_one_rank(
    length: int, batch_size: int, world: int
) -> None:
    ranks = []
    for rank in range(world):
        data = data_of(length, batch_size, rank, world)
        data.set_position(3, 1)
        ranks.append([batch.tolist() for (batch,) in data.each_once()])
        assert ranks[-1] == [batch.tolist() for (batch,) in data.each_once()]
        assert all(0 < len(batch) <= batch_size for batch in ranks[-1])
    seen = sorted(i for rank in ranks for batch in rank for i in batch)
    assert seen == sorted([*range(length)] * (1 if length >= world else world))
    counts = {len(rank) for rank in ranks}
    assert len(counts) == 1 or batch_size == 1
    equal = [
        len(list(data_of(length, batch_size, r, world).each_once(equal=True))) for r in range(world)
    ]
    assert len(set(equal)) == 1
    if world == 1:
        assert [len(batch) for batch in ranks[0][:-1]] == [batch_size] * (len(ranks[0]) - 1)


def test_training_is_given_equally_many_samples_on_every_rank_after_such_a_pass() -> None:
    order = BatchOrder(9, 2, world=2, rank=1)
    before = list(order)
    order.fills = False
    assert sum(map(len, order)) == 4
    order.fills = True
    assert list(order) == before
    assert sum(map(len, order)) == 5


SPLIT: dict[str, Callable[[], Any]] = {
    "hatbus": lambda: loader(Noisy(), 2),
    "distributed": lambda: DataLoader(Noisy(), 2, sampler=DistributedSampler(Noisy(), 2, 0)),
    "own batches": lambda: DataLoader(Noisy(), batch_sampler=BatchOrder(10, 2, world=2)),
    "list": lambda: [torch.ones(2)],
}
WHOLE: dict[str, Callable[[], Any]] = {
    "in order": lambda: DataLoader(Noisy(), 2),
    "shuffling": lambda: DataLoader(Noisy(), 2, shuffle=True),
    "by weight": lambda: DataLoader(Noisy(), 2, sampler=WeightedRandomSampler([1.0] * 10, 10)),
    "no batches": lambda: DataLoader(Noisy(), None, shuffle=True),
}


@pytest.mark.parametrize("kind", [*SPLIT, *WHOLE])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_a_loader_that_gives_all_to_every_process_is_warned_of_once(
    kind: str,
    rank: int,
    world: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    tiny_trainer(data={"a": (SPLIT | WHOLE)[kind]()})
    told = "the loader of task 'a' gives all its samples to each of the 2 processes"
    assert caplog.text.count(told) == (kind in WHOLE and (rank, world) == (0, 2))


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        loader(TensorDataset(torch.ones(0, 2)), 3)


def taken(feed: Feed, count: int) -> list[Any]:
    feed.start(0, 0, 1)
    return [feed.group(1, endless=False)[0] for _ in range(count)]


def resumed(state: dict[str, Any], data: Any) -> Feed:
    feed = Feed(data, None)
    feed.load_state_dict(state)
    feed.start(0, 0, 1)
    feed.open_again()
    return feed


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_loader_that_cannot_be_positioned_is_replayed_with_a_note(
    own_generator: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def build() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(2) if own_generator else None
        return DataLoader(Drawing(), 2, shuffle=True, generator=generator)

    caplog.set_level("INFO", "hatbus")
    torch.manual_seed(0)
    feed = Feed(build(), None)
    whole = [b.tolist() for b in taken(feed, 2)]
    state = feed.state_dict(inside=True)
    torch.manual_seed(99)
    rest = resumed(state, build())
    later = [rest.group(1, endless=False)[0].tolist() for _ in range(3)]
    assert later == [feed.group(1, endless=False)[0].tolist() for _ in range(3)]
    assert sorted(x for b in whole + later for x in b) == list(range(10))
    assert "the loader cannot be positioned: replaying 2 batches" in caplog.text


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("behind", [0, 2])
def test_an_epoch_of_persistent_workers_is_gone_on_with_in_its_own_order(
    behind: int, own_generator: bool
) -> None:
    def build() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(2) if own_generator else None
        workers = {"num_workers": 1, "persistent_workers": True}
        return DataLoader(Drawing(), 2, shuffle=True, generator=generator, **workers)  # type: ignore[arg-type]

    torch.manual_seed(0)
    feed = Feed(build(), None)
    feed.start(0, 0, 1)
    assert len(feed.group(9, endless=False)) == 5
    feed.start(1, 0, 1)
    if behind:
        feed.group(behind, endless=False)
    state, random_state = feed.state_dict(inside=behind > 0), rng.capture()
    rest = [batch.tolist() for batch in feed.group(9, endless=False)]
    again = Feed(build(), None)
    again.load_state_dict(state)
    rng.restore(random_state)
    again.start(1, behind, 1)
    again.open_again()
    assert [batch.tolist() for batch in again.group(9, endless=False)] == rest
    assert len(rest) == 5 - behind


class Keeping:
    """A loader that says and takes back where it stands."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self.at == 0:
            self.order = torch.randperm(10).tolist()
        while self.at < 10:
            self.at += 2
            yield torch.tensor(self.order[self.at - 2 : self.at])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.at = list(state["order"]), state["at"]


LOADERS: dict[str, Callable[[], Any]] = {
    "hatbus": lambda: loader(Noisy(), 2),
    "shuffling": lambda: DataLoader(Drawing(), 2, shuffle=True),
    "own generator": lambda: DataLoader(
        Drawing(), 2, shuffle=True, generator=torch.Generator().manual_seed(2)
    ),
    "persistent workers": lambda: DataLoader(
        Drawing(), 2, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "persistent workers, own generator": lambda: DataLoader(
        Drawing(),
        2,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(2),
    ),
    "stateful": Keeping,
    "two tasks": lambda: {
        "a": DataLoader(Drawing(), 1, shuffle=True),
        "b": DataLoader(Drawing(), 2, shuffle=True),
    },
    "two tasks, one loader": lambda: dict.fromkeys("ab", loader(Noisy(), 2)),
    "two tasks, one loader of torch": lambda: dict.fromkeys(
        "ab", DataLoader(Drawing(), 2, shuffle=True)
    ),
    "two tasks, one generator": lambda: {
        task: DataLoader(Drawing(), 2, shuffle=True, generator=g)
        for g in [torch.Generator().manual_seed(2)]
        for task in "ab"
    },
}


def seen_in_fits(build: Callable[[], Any], *ends: int, **options: Any) -> list[Any]:
    """The batches, and a random number drawn beside each, of fits to these steps."""

    class Sees:
        @hookimpl
        def on_batch_begin(self, task: str | None, batch: torch.Tensor) -> None:
            seen.append((task, batch.flatten().tolist(), float(torch.rand(()))))

    seen: list[Any] = []
    model = torch.nn.Linear(1, 1)
    processor = BatchProcessor(lambda outs, _: outs)

    class Ignores:
        @hookimpl
        def forward(self, model: torch.nn.Module) -> torch.Tensor:
            return model.weight.sum()

        @hookimpl
        def compute_loss(self, model_outs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": model_outs}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model, optimizer, build(), plugins=[Sees(), Ignores()], batch_processor=processor, **options
    )
    torch.manual_seed(3)
    for end in ends:
        trainer.fit(num_steps=end)
    return seen


def test_a_loader_that_goes_on_with_a_pass_that_was_left_is_not_called_too_short(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Sized(Keeping):
        def __len__(self) -> int:
            return 5

    seen = seen_in_fits(Sized, 6, task_sampler=AllTasks(steps=2))
    assert sorted(x for _, batch, _ in seen[:5] for x in batch) == list(range(10))
    assert "its length is" not in caplog.text


def test_a_second_fit_finds_the_place_of_each_task_in_a_loader_of_two() -> None:
    def build() -> dict[str, Any]:
        return dict.fromkeys("ab", loader(Noisy(), 1))

    def sampler() -> AllTasks:
        return AllTasks({"a": 2})

    at_once = seen_in_fits(build, 8, task_sampler=sampler())
    assert seen_in_fits(build, 3, 8, task_sampler=sampler()) == at_once


@pytest.mark.parametrize("build", [loader, DataLoader])
def test_two_tasks_read_all_of_a_loader_with_persistent_workers(build: Any) -> None:
    data = build(Drawing(), 5, num_workers=1, persistent_workers=True)
    seen = seen_in_fits(lambda: dict.fromkeys("ab", data), 2)
    for task in "ab":
        assert sorted(x for t, batch, _ in seen for x in batch if t == task) == list(range(10))


def test_a_loader_that_keeps_its_place_itself_cannot_serve_two_tasks() -> None:
    message = "tasks 'a' and 'b' share one loader, which keeps its place itself"
    with pytest.raises(JobError, match=message):
        tiny_trainer(data=dict.fromkeys("ab", Keeping()))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ends", [(2, 4, 7), (5, 6, 10), (3, 9)])  # an epoch has 5 steps, or 3
@pytest.mark.parametrize("kind", LOADERS)
def test_a_second_fit_goes_on_where_the_first_ended(
    kind: str, ends: tuple[int, ...], accumulate: int
) -> None:
    build = LOADERS[kind]
    at_once = seen_in_fits(build, 11, accumulate=accumulate)
    assert seen_in_fits(build, *ends, 11, accumulate=accumulate) == at_once


def test_a_fit_that_fails_before_its_first_step_leaves_the_place_in_the_data() -> None:
    class Fails:
        @hookimpl
        def on_loop_begin(self) -> None:
            raise ValueError("a typo")

    seen: list[float] = []
    recorder = hearing(["on_batch_begin"], lambda _, v: seen.extend(v["batch"][0][:, 0].tolist()))
    inputs = torch.arange(10.0).reshape(10, 1).expand(10, 3)
    data = DataLoader(TensorDataset(inputs, torch.ones(10, 1)), 2, shuffle=True)
    trainer = tiny_trainer([recorder], data)
    trainer.fit(num_steps=2)
    trainer.bus.register(Fails(), "fails")
    for _ in range(2):
        with pytest.raises(ValueError, match="a typo"):
            trainer.fit(num_steps=5)
    trainer.bus.unregister("fails")
    trainer.fit(num_steps=5)
    assert sorted(seen) == list(range(10))


def test_a_fit_after_an_error_goes_on_from_a_new_pass() -> None:
    class Fails:
        @hookimpl
        def on_step_end(self, global_step_id: int) -> None:
            if global_step_id == 1:
                raise ValueError("once")

    trainer = tiny_trainer([Fails()], DataLoader(TensorDataset(torch.ones(8, 3), torch.ones(8, 1))))
    with pytest.raises(ValueError, match="once"):
        trainer.fit(num_steps=4)
    assert trainer.fit(num_steps=4).global_step_id == 3


def test_data_that_became_shorter_is_an_error_with_both_numbers() -> None:
    feed = Feed(DataLoader(Drawing(), 2), None)
    taken(feed, 4)
    state = feed.state_dict(inside=True)
    with pytest.raises(DataError, match=r"gave 3 batches in epoch 0, but 4 of them are behind"):
        resumed(state, [1, 2, 3])


def test_batches_of_every_kind_are_moved_and_keep_their_kind() -> None:
    class Own:
        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def to(self, device: Any) -> Own:
            return Own(self.values.to(device))

    packed = rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    counted: Any = defaultdict(list, {"x": torch.ones(2)})
    batch = ({"a": [torch.ones(1)], "name": "text"}, packed, counted, Own(torch.ones(1)))
    first, sequence, more, own = moved(batch, torch.device("meta"))
    found = (first["a"][0], sequence.data, more["x"], own.values)
    assert {one.device.type for one in found} == {"meta"}
    assert first["name"] == "text"
    assert sequence.batch_sizes.tolist() == [2, 1, 1]
    assert more["absent"] == []


def test_a_mapping_of_the_users_own_is_not_changed_by_moving_it() -> None:
    batch = UserDict({"x": torch.ones(1)})
    assert moved(batch, torch.device("meta"))["x"].device.type == "meta"
    assert batch["x"].device.type == "cpu"
