"""How a run finds its place again in loaders of every kind, and what it does with batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import Drawing, Keeping, Noisy, seen_in_fits
from tiny import batches, hearing, tiny_trainer
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)

from hatbus import hookimpl, rng
from hatbus.data.feed import Feed
from hatbus.data.loaders import loader
from hatbus.data.task_sampler import AllTasks
from hatbus.errors import DataError, JobError


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


class Estimated(list[Any]):
    """A loader that holds more batches than it says, as one that puts samples of like lengths
    together."""

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ends", [(2,), (3,), (4,), (2, 3)])
def test_a_stop_where_an_estimated_length_ends_loses_no_batch(
    ends: tuple[int, ...], accumulate: int
) -> None:
    at_once = stopped_in_fits(accumulate=accumulate)
    assert [len(rows) for rows in at_once] == ([5, 5] if accumulate == 1 else [3, 3])
    assert stopped_in_fits(*ends, accumulate=accumulate) == at_once


def stopped_in_fits(*ends: int, accumulate: int) -> list[list[float]]:
    """The losses of two epochs, in fits that each but the last stop after so many steps in all."""
    seen: list[list[float]] = [[], []]

    class Stops:
        @hookimpl
        def on_step_end(self, ctx: Any, epoch_id: int, losses: Any) -> None:
            seen[epoch_id].append(losses["loss"].item() + float(torch.rand(())))
            if ctx.global_step_id + 1 in ends:
                ctx.control.stop("run")

    torch.manual_seed(0)
    trainer = tiny_trainer([Stops()], Estimated(batches(5)), accumulate=accumulate)
    for _ in range(len(ends) + 1):
        trainer.fit(num_epochs=2)
    return seen
