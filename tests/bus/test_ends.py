"""Every end is heard, and told of the error that led to it, once that is what ends it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from tiny import tiny_trainer

from hatbus import hookimpl
from hatbus.loop.context import Context


class Fails:
    """Fails at the end of its first step."""

    @hookimpl
    def on_step_end(self) -> None:
        raise ValueError("broken")


class Sees:
    """Writes down what it is told at the ends of steps and of the run."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        self.seen.append(ctx.exception)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        self.seen.append(ctx.exception)


class FailsToValidate:
    """Provides a validation that fails, and lives with that."""

    @hookimpl
    def validate(self) -> bool:
        raise ValueError("no data")

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        assert isinstance(ctx.exception, ValueError)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        try:
            ctx.emit.validate(ctx, "try")
        except ValueError as error:
            self.caught = error


def test_an_error_that_a_plugin_caught_is_not_the_end_of_the_run() -> None:
    sees = Sees()
    tiny_trainer({"fails": FailsToValidate(), "sees": sees}).fit(num_steps=2)
    assert sees.seen == [None, None, None]


def test_an_error_that_was_caught_on_the_way_out_leaves_the_one_that_ends_the_run() -> None:
    sees = Sees()
    trainer = tiny_trainer({"breaks": Fails(), "fails": FailsToValidate(), "sees": sees})
    with pytest.raises(ValueError, match="broken") as caught:
        trainer.fit(num_steps=2)
    assert sees.seen == [caught.value, caught.value]
    assert trainer.ctx.exception is caught.value
    trainer.bus.unregister("breaks")
    trainer.fit(num_steps=3)
    assert trainer.ctx.exception is None


def test_a_span_within_a_loop_of_ones_own_tells_its_end_what_happened() -> None:
    sees = Sees()
    ctx = tiny_trainer([sees]).ctx
    with pytest.raises(KeyError), ctx.within("run_step"):
        raise KeyError("mine")
    assert isinstance(sees.seen[0], KeyError)
    assert ctx.exception is None


def test_an_error_in_an_end_does_not_wake_a_plugin_that_is_not_due() -> None:
    sees = Sees()
    trainer = tiny_trainer({"fails": Fails()})
    trainer.bus.register(sees, "sees", overrides={"every": "100 steps"})
    with pytest.raises(ValueError, match="broken"):
        trainer.fit(num_steps=2)
    assert len(sees.seen) == 1  # on_loop_end


def test_a_wrapper_of_an_end_that_fails_before_it_yields_keeps_nobody_from_hearing_it() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def on_step_end(self, ctx: Context) -> Generator[None, Any, Any]:
            if ctx.exception is None:
                raise ValueError("broken")
            yield

    sees = Sees()
    with pytest.raises(ValueError, match="broken") as caught:
        tiny_trainer({"wraps": Wraps(), "sees": sees}).fit(num_steps=2)
    assert sees.seen == [caught.value, caught.value]
