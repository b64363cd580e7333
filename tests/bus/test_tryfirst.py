"""``tryfirst`` and ``trylast`` of a plugin's method: first or last of the plugins in its event."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from tiny import Listens, tiny_trainer, weights

from hatbus import Bus, hookimpl, plugin
from hatbus.errors import PluginError
from hatbus.insight.explanation import plan_of


def order_of(bus: Bus, event: str) -> list[str]:
    return [impl.plugin_name for impl in bus.implementations(event)]


@plugin(stage="setup", before="metrics")
class Closing:
    """Is early in every event but one."""

    @hookimpl(trylast=True)
    def on_step_end(self) -> None: ...

    @hookimpl
    def on_epoch_end(self) -> None: ...


@plugin(stage="report", after="metrics")
class Opening:
    """Is late in every event but one."""

    @hookimpl(tryfirst=True)
    def on_step_end(self) -> None: ...

    @hookimpl
    def on_epoch_end(self) -> None: ...


class Metrics(Listens):
    @hookimpl
    def on_epoch_end(self) -> None: ...


def test_a_mark_decides_across_stages_and_in_its_event_alone() -> None:
    bus = Bus([Metrics(), Opening(), Closing()])
    assert order_of(bus, "on_step_end") == ["opening", "metrics", "closing"]
    assert order_of(bus, "on_epoch_end") == ["closing", "metrics", "opening"]


@pytest.mark.parametrize("kind", [Opening, Closing])
def test_those_that_say_the_same_keep_their_order(kind: type[Any]) -> None:
    bus = Bus()
    bus.register(kind(), "a", overrides={"after": "b", "before": []})
    bus.register(kind(), "b", overrides={"after": [], "before": []})
    assert order_of(bus, "on_step_end") == ["b", "a"]


def test_what_is_hatbus_own_stays_around_before_and_behind() -> None:
    class Everywhere:
        @hookimpl(wrapper=True, tryfirst=True)
        def run_step(self) -> Generator[None, Any, Any]:
            return (yield)

        @hookimpl(tryfirst=True)
        def on_loop_begin(self) -> None: ...

        @hookimpl(trylast=True)
        def validate(self) -> dict[str, float]:
            return {}

    bus = tiny_trainer({"mine": Everywhere()}).bus
    for event in ("run_step", "on_loop_begin"):
        *core, last = [name for name in order_of(bus, event) if name != "core.loop"]
        assert last == "mine"
        assert core
        assert all(name.startswith("core.") for name in core)
    assert order_of(bus, "validate")[-2:] == ["mine", "core.nobody"]


class Replaces:
    """Leaves every update out."""

    @hookimpl(trylast=True)
    def optimizer_step(self) -> bool:
        return False


def test_a_span_is_replaced_by_one_that_says_trylast() -> None:
    trainer = tiny_trainer([Replaces()])
    before = weights(trainer)
    trainer.fit(num_steps=2)
    assert weights(trainer).equal(before)
    entries = {e.plugin: e.does for e in plan_of(trainer.bus).events["optimizer_step"]}
    assert entries["replaces"] == "replaces"


def test_two_that_replace_a_span_are_refused_whatever_they_say() -> None:
    class Other:
        @hookimpl(tryfirst=True)
        def optimizer_step(self) -> bool:
            return True

    with pytest.raises(PluginError, match="'other' and 'replaces' both replace optimizer_step"):
        tiny_trainer([Replaces(), Other()]).fit(num_steps=1)


def test_the_plan_says_which_mark_decides() -> None:
    plan = plan_of(Bus([Metrics(), Opening(), Closing()]))
    assert [entry.why_here[0] for entry in plan.events["on_step_end"]] == [
        "tryfirst: before all plugins",
        "stage monitor",
        "trylast: behind all plugins",
    ]
    assert [entry.why_here[0] for entry in plan.events["on_epoch_end"]] == [
        "stage setup",
        "stage monitor",
        "stage report",
    ]
    assert [entry.plugin for entry in plan.plugins] == ["closing", "metrics", "opening"]
