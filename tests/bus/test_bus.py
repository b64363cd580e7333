"""The bus: order, tasks and ranks, replacements, and plugins that come and go while a run is on."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import pytest
from tiny import Listens, hearing, tiny_trainer, weights

from hatbus import Bus, hookimpl, plugin
from hatbus.errors import PluginError
from hatbus.loop.context import Context


@plugin(stage="checkpoint")
class Late(Listens):
    pass


@plugin(stage="setup")
class Early(Listens):
    pass


def order_of(bus: Bus, event: str = "on_step_end") -> list[str]:
    return [impl.plugin_name for impl in bus.implementations(event)]


def test_implementations_run_in_the_declared_order() -> None:
    assert order_of(Bus({"late": Late(), "plain": Listens(), "early": Early()})) == [
        "early",
        "plain",
        "late",
    ]


def test_the_job_may_override_a_declaration() -> None:
    bus = Bus({"late": Late()})
    bus.register(Listens(), "plain", overrides={"stage": "report"})
    bus.register(Listens(), "other", overrides={"after": "late", "stage": "checkpoint"})
    assert order_of(bus) == ["late", "other", "plain"]


def test_the_order_is_the_same_for_every_order_of_registration_but_the_jobs() -> None:
    members: dict[str, type[Listens]] = {"a": Late, "b": Early}
    orders = set()
    for seed in range(50):
        names = list(members)
        random.Random(seed).shuffle(names)
        orders.add(tuple(order_of(Bus({n: members[n]() for n in names}))))
    assert orders == {("b", "a")}


def test_wrappers_nest_by_the_same_order() -> None:
    log: list[str] = []

    def wrapping(name: str) -> object:
        def forward(self: object) -> Generator[None, Any, Any]:
            log.append(f"{name} in")
            result = yield
            log.append(f"{name} out")
            return result

        return type("Wrapping", (), {"forward": hookimpl(forward, wrapper=True)})()

    trainer = tiny_trainer({"a": wrapping("a")})
    trainer.bus.register(wrapping("b"), "b", overrides={"stage": "setup"})
    trainer.fit(num_steps=1)
    assert log == ["b in", "a in", "a out", "b out"]


def test_registering_while_the_run_is_on_takes_effect_at_the_next_event() -> None:
    heard: list[str] = []

    class Invites:
        @hookimpl
        def on_step_begin(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == 1:
                ctx.bus.register(hearing(["on_step_end"], lambda e, _: heard.append(e)), "guest")
            if global_step_id == 2:
                ctx.bus.unregister("guest")

    tiny_trainer([Invites()]).fit(num_steps=3)
    assert heard == ["on_step_end"]


def test_a_replacement_runs_in_place_of_the_default() -> None:
    class Frozen:
        @hookimpl
        def optimizer_step(self) -> bool:
            return False

    trainer = tiny_trainer([Frozen()])
    before = weights(trainer)
    trainer.fit(num_steps=2)
    assert weights(trainer).equal(before)
    assert trainer.ctx.updates == 0


def test_a_plugin_off_gives_the_same_loss_as_one_that_is_not_there() -> None:
    class Draws:
        @hookimpl
        def on_step_end(self) -> None: ...

    with_it, without = tiny_trainer([Draws()]), tiny_trainer()
    with_it.fit(num_epochs=2)
    without.fit(num_epochs=2)
    assert weights(with_it).equal(weights(without))


def test_plugins_of_rank_zero_are_silent_elsewhere() -> None:
    heard: list[str] = []
    bus = Bus(rank=1)
    recorder = hearing(["on_step_end"], lambda e, _: heard.append(e))
    bus.register(recorder, "writer", overrides={"ranks": "zero"})
    assert bus.emitter().on_step_end is None


def test_a_plugin_can_tell_its_published_names_from_those_of_its_like() -> None:
    class Plain:
        @hookimpl
        def on_loop_begin(self) -> None: ...

    first, second = Plain(), Plain()
    bus = Bus({"first": first, "second": second})
    assert (bus.log_prefix(first), bus.log_prefix(second)) == ("", "second/")
    bus.unregister("first")
    assert bus.log_prefix(second) == ""
    with pytest.raises(PluginError, match="is no plugin on this bus; register it first"):
        bus.log_prefix(first)
