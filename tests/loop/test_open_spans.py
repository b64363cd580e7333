"""Spans of a loop that somebody else owns: opened here, left there."""

from collections.abc import Generator
from typing import Any

import pytest

from hatbus import Bus, Context, HatbusError, hookimpl, plugin
from hatbus.bus import Moments
from hatbus.loop import OpenSpans


class Around:
    """Wraps two spans, and hears their moments."""

    def __init__(self, heard: list[str], name: str = "") -> None:
        self.heard, self.name = heard, name

    @hookimpl(wrapper=True)
    def run_step(self) -> Generator[None, Any, Any]:
        self.heard.append(f"{self.name}into step")
        try:
            result = yield
        except ValueError as error:
            self.heard.append(f"{self.name}step failed: {error}")
            raise
        self.heard.append(f"{self.name}out of step: {result}")
        return result

    @hookimpl
    def on_step_begin(self) -> None:
        self.heard.append(f"{self.name}step begins")

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        self.heard.append(f"{self.name}step ends: {ctx.exception}")

    @hookimpl
    def on_exception(self, exception: BaseException) -> None:
        self.heard.append(f"{self.name}told: {exception}")


def spans_of(*plugins: object) -> tuple[OpenSpans, Context]:
    bus = Bus({f"p{number}": one for number, one in enumerate(plugins)})
    bus.register(Moments(), "core.moments", core=True)
    ctx = Context(bus)
    return OpenSpans(ctx), ctx


def test_moments_stand_outside_of_wrappers_which_nest_in_order() -> None:
    heard: list[str] = []
    spans, _ = spans_of(Around(heard, "a "), Around(heard, "b "))
    spans.enter("run_step")
    assert spans.names == ("run_step",)
    heard.append("work")
    assert spans.leave("run_step", "done") == "done"
    assert heard == [
        "a step begins",
        "b step begins",
        "a into step",
        "b into step",
        "work",
        "b out of step: done",
        "a out of step: done",
        "a step ends: None",
        "b step ends: None",
    ]


def test_an_error_goes_through_everything_that_is_open_innermost_first() -> None:
    heard: list[str] = []
    spans, ctx = spans_of(Around(heard))
    spans.enter("run_loop")
    spans.enter("run_step")
    heard.clear()
    error = ValueError("lost")
    spans.fail(error)
    assert heard == ["step failed: lost", "step ends: lost", "told: lost"]
    assert spans.names == ()
    assert ctx.exception is None


def test_a_wrapper_changes_the_result_of_the_one_around_it() -> None:
    class Doubled:
        @hookimpl(wrapper=True)
        def forward(self) -> Generator[None, Any, Any]:
            return 2 * (yield)

    spans, ctx = spans_of(Doubled())
    spans.enter("forward")
    assert spans.leave("forward", 3) == 6
    assert ctx.model_outs == 6


def test_intervals_hold() -> None:
    @plugin(every="2 steps")
    class Seldom:
        steps: list[int]

        @hookimpl(wrapper=True)
        def run_batch(self, global_step_id: int) -> Generator[None, Any, Any]:
            self.steps.append(global_step_id)
            return (yield)

    seldom = Seldom()
    seldom.steps = []
    spans, ctx = spans_of(seldom)
    for ctx.global_step_id in range(4):
        spans.enter("run_step")
        spans.enter("run_batch")
        spans.leave("run_batch", {})
        spans.leave("run_step")
    assert seldom.steps == [1, 3]


def test_a_plugin_that_is_registered_while_the_run_is_on_is_heard() -> None:
    heard: list[str] = []
    spans, ctx = spans_of(Around([]))
    spans.enter("run_step")
    ctx.bus.register(Around(heard), "late")
    spans.leave("run_step")
    assert heard == ["step ends: None"]
    spans.enter("run_step")
    assert "into step" in heard


def test_updates_are_counted_as_moments_count_them() -> None:
    spans, ctx = spans_of(Around([]))
    for committed in (True, False, True):
        spans.enter("optimizer_step")
        spans.leave("optimizer_step", committed)
    assert ctx.updates == 2


class Broken:
    def __init__(self, where: str) -> None:
        self.where = where

    @hookimpl(wrapper=True)
    def run_step(self) -> Generator[None, Any, Any]:
        if self.where == "before":
            raise KeyError("mine")
        result = yield
        if self.where == "after":
            raise KeyError("mine")
        return None if self.where == "none" else result


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_plugin_that_fails_is_named_and_the_others_are_told(where: str) -> None:
    heard: list[str] = []
    spans, _ctx = spans_of(Around(heard), Broken(where))

    def step() -> None:
        spans.enter("run_step")
        spans.leave("run_step")

    with pytest.raises(KeyError) as caught:
        step()
    spans.fail(caught.value)
    assert "in plugin 'p1'" in caught.value.__notes__[0]
    assert "run_step, step 0" in caught.value.__notes__[0]
    assert heard[-1] == "step ends: 'mine'"


def test_a_wrapper_may_not_return_none() -> None:
    spans, _ = spans_of(Broken("none"))
    spans.enter("run_step")
    with pytest.raises(HatbusError, match="run_step is a span and returned None"):
        spans.leave("run_step")


def test_only_the_innermost_span_can_be_left() -> None:
    spans, _ = spans_of(Around([]))
    spans.enter("run_loop")
    spans.enter("run_step")
    with pytest.raises(HatbusError, match=r"'run_loop' cannot be left; open.*'run_step'"):
        spans.leave("run_loop")


def test_a_span_that_is_open_is_not_opened_again_and_only_the_innermost_is_left() -> None:
    spans, _ = spans_of(Around([]))
    spans.enter("run_step")
    spans.enter("run_batch")
    with pytest.raises(HatbusError, match="'run_step' is open already"):
        spans.enter("run_step")
    with pytest.raises(HatbusError, match=r"'run_step' cannot be left; .*'run_step', 'run_batch'"):
        spans.leave("run_step")
    spans.leave("run_batch")
    spans.leave("run_step")
    with pytest.raises(HatbusError, match=r"'run_step' cannot be left; .*\[\]"):
        spans.leave("run_step")
    assert spans.names == ()
