"""Loaders that keep their place themselves, as libraries have them, are gone on with exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from samples import seen_in_fits
from torch.utils.data import DataLoader

from hatbus.data.feed import Feed


class Goes:
    """Five batches a pass; after the last one its state means the next pass, as litdata's does."""

    def __init__(self) -> None:
        self.passes = self.at = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[int]:
        while self.at < 5:
            self.at += 1
            batch = 10 * self.passes + self.at
            if self.at == 5:
                self.passes, self.at = self.passes + 1, 0
                yield batch
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self.passes, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes, self.at = state["passes"], state["at"]


class Looks:
    """As ``torchdata.nodes``' Loader: no length; looks ahead, and begins anew at the end."""

    def __init__(self) -> None:
        self.restart_on_stop_iteration = True
        self.at = 0
        self.loaded: int | None = None

    def __iter__(self) -> Iterator[int]:
        self.at, self.loaded = self.loaded or 0, None
        if self.at == 5 and self.restart_on_stop_iteration:
            self.at = 0
        return self.rest()

    def rest(self) -> Iterator[int]:
        while self.at < 5:
            self.at += 1
            yield self.at

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state["at"]


class StatefulDataLoader(Looks):
    """As torchdata's: an empty rest after the last batch, a new pass after the pass was ended."""

    def __init__(self) -> None:
        super().__init__()
        self.restart_on_stop_iteration = False

    def __len__(self) -> int:
        return 5

    def rest(self) -> Iterator[int]:
        yield from super().rest()
        self.at = 0


KINDS = {"litdata": Goes, "nodes": Looks, "torchdata": StatefulDataLoader}


def two_epochs(feed: Feed, group: int, first: list[Any], epoch: int) -> list[Any]:
    """The rest of an epoch, and the next one."""
    found = list(first)
    while batches := feed.group(group, endless=False):
        found.append(batches)
    feed.start(epoch + 1, 0, group)
    while batches := feed.group(group, endless=False):
        found.append(batches)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_a_run_saved_anywhere_in_a_pass_goes_on_as_if_not_stopped(
    kind: str, group: int, groups: int
) -> None:
    groups = min(groups, -(-5 // group))
    feed = Feed(KINDS[kind](), None)
    feed.start(0, 0, group)
    behind = [feed.group(group, endless=False) for _ in range(groups)]
    state = copy.deepcopy(feed.state_dict(inside=True))
    whole = two_epochs(feed, group, behind, 0)
    again = Feed(KINDS[kind](), None)
    again.load_state_dict(state)
    again.start(0, groups * group, group)
    again.open_again()
    assert two_epochs(again, group, behind, 0) == whole
    assert sum(map(len, whole)) == 10


def test_a_loader_that_looks_ahead_does_so_again_after_a_resume() -> None:
    feed = Feed(Looks(), None)
    feed.start(0, 0, 1)
    feed.group(5, endless=False)
    again = Feed(Looks(), None)
    again.load_state_dict(feed.state_dict(inside=True))
    again.start(0, 5, 1)
    again.open_again()
    assert again.loader.restart_on_stop_iteration


class Counts:
    """A data set as mosaicml-streaming's: a state that is older than its next epoch is dropped."""

    def __init__(self) -> None:
        self._next = self.at = 0
        self.loaded: dict[str, Any] | None = None

    @property
    def next_epoch(self) -> int:
        return self._next

    @next_epoch.setter
    def next_epoch(self, epoch: int) -> None:
        self._next = epoch


class Streams:
    """Its loader, which counts an epoch on when a pass begins."""

    def __init__(self) -> None:
        self.dataset = Counts()

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[float]:
        data, first = self.dataset, 0
        epoch = data.next_epoch
        if data.loaded is not None and data.loaded["epoch"] >= epoch:
            epoch, first = data.loaded["epoch"], data.loaded["at"]
        data.loaded, data.next_epoch = None, epoch + 1
        for data.at in range(first + 1, 6):
            yield float(10 * epoch + data.at)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.dataset.next_epoch - 1, "at": self.dataset.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.loaded = dict(state)


def test_a_second_fit_goes_on_in_a_loader_that_drops_older_states() -> None:
    feed = Feed(Streams(), None)
    feed.start(0, 0, 1)
    behind = [feed.group(1, endless=False) for _ in range(3)]
    feed.load_state_dict(feed.state_dict(inside=True))
    feed.start(0, 3, 1)
    feed.open_again()
    expected = [[10.0 * epoch + n] for epoch in range(2) for n in range(1, 6)]
    assert two_epochs(feed, 1, behind, 0) == expected


class Draws(DataLoader[Any]):
    """As litdata's: a generator whose pass begins, and draws a seed, with its first batch."""

    def __init__(self) -> None:
        super().__init__(list(range(5)), batch_size=None)  # type: ignore[arg-type]
        self.at, self.restore = 0, False

    def __iter__(self) -> Iterator[Any]:
        if not self.restore:
            self.at = 0
        first = self.at
        for number, batch in enumerate(super().__iter__()):
            if number >= first:
                self.at = number + 1
                yield batch
        self.restore = False

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.restore = state["at"], True


@pytest.mark.parametrize("stop", [3, 5, 8, 10])
def test_a_pass_that_is_gone_on_with_draws_no_random_number_again(stop: int) -> None:
    class Build(Draws):
        """Its data is numbers."""

        def __iter__(self) -> Iterator[Any]:
            return (torch.tensor([float(batch)]) for batch in super().__iter__())

    whole = seen_in_fits(Build, 12)
    assert seen_in_fits(Build, stop, 12) == whole


def test_a_pass_that_was_gone_on_with_and_left_is_not_gone_on_with_again() -> None:
    feed = Feed(Draws(), None)
    feed.start(0, 0, 1)
    feed.group(2, endless=False)
    again = Feed(Draws(), None)
    again.load_state_dict(feed.state_dict(inside=True))
    again.start(0, 2, 1)
    again.open_again()
    assert again.group(1, endless=False) == [2]
    again.start(1, 0, 1)
    assert again.group(9, endless=False) == [0, 1, 2, 3, 4]


def test_a_pass_that_shows_as_empty_after_a_resume_draws_no_random_number() -> None:
    feed = Feed(Draws(), None)
    feed.start(0, 0, 1)
    for _ in range(6):
        feed.group(1, endless=False)
    again = Feed(Draws(), None)
    again.load_state_dict(feed.state_dict(inside=False))
    drawn = []
    for one in (feed, again):
        torch.manual_seed(3)
        one.start(1, 0, 1)
        one.open_again()
        assert one.group(1, endless=False) == [0]
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1]
