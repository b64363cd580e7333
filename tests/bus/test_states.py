"""States: collected and given back by name, and never those of another run."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import Listens, hearing, tiny_trainer

from hatbus import Bus, hookimpl
from hatbus.errors import CheckpointError, PluginError
from hatbus.loop.context import Context


def test_state_is_collected_and_given_back_by_instance_name() -> None:
    class Counts(Listens):
        def __init__(self, count: int = 0) -> None:
            self.count = count

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    saved = Bus({"a": Counts(1), "b": Counts(2), "c": Listens()}).state_dict()
    assert saved == {"a": {"count": 1}, "b": {"count": 2}}
    a, b = Counts(), Counts()
    Bus({"b": b, "a": a}).load_state_dict(saved)
    assert (a.count, b.count) == (1, 2)


def test_state_of_a_core_part_that_this_run_does_without_is_left_out() -> None:
    state = tiny_trainer(nan="skip_step").bus.state_dict()
    assert "core.finite_loss" in state
    tiny_trainer(nan="raise").bus.load_state_dict(state)
    tiny_trainer(nan="ignore").bus.load_state_dict(state)
    with pytest.raises(CheckpointError, match="'mine', which is not in this run"):
        tiny_trainer(nan="ignore").bus.load_state_dict({**state, "mine": {}})


class Counts:
    """Keeps a number in checkpoints."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def on_step_end(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_a_state_of_another_trainers_run_is_refused() -> None:
    class FailsFirst:
        @hookimpl
        def on_loop_begin(self) -> None:
            raise ValueError("a typo")

    counts, hears = Counts(), hearing(["on_step_end"], lambda *_: None)
    with pytest.raises(ValueError, match="a typo"):
        tiny_trainer({"counts": counts, "fails": FailsFirst()}).fit(num_steps=1)
    first = tiny_trainer({"counts": counts, "hears": hears})
    first.fit(num_steps=1)
    first.fit(num_steps=2)
    assert counts.count == 2
    with pytest.raises(PluginError, match="'counts' keeps what it saw in a run of another trainer"):
        tiny_trainer({"counts": counts}).fit(num_steps=1)
    tiny_trainer({"hears": hears}).fit(num_steps=1)


def test_a_state_that_was_loaded_is_no_longer_another_trainers() -> None:
    class Resumes:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.bus.load_state_dict({"counts": {"count": 5}})

    counts = Counts()
    tiny_trainer({"counts": counts}).fit(num_steps=3)
    tiny_trainer({"counts": counts, "resumes": Resumes()}).fit(num_steps=1)
    assert counts.count == 6


def test_a_plugin_with_slots_keeps_a_state() -> None:
    class Slim(Counts):
        __slots__ = ()

    class Slimmer:
        __slots__ = ("count",)
        __init__, state_dict = Counts.__init__, Counts.state_dict
        load_state_dict, on_step_end = Counts.load_state_dict, Counts.on_step_end

    plugins: Any = {"slim": Slim(), "slimmer": Slimmer()}
    tiny_trainer(plugins).fit(num_steps=2)
    assert [p.count for p in plugins.values()] == [2, 2]
