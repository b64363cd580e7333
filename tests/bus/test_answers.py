"""What an implementation may return and a wrapper may do with what it was given."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from tiny import tiny_trainer

from hatbus import Bus, hookimpl
from hatbus.errors import HookError
from hatbus.loop.context import Context


def test_a_span_that_returns_none_is_an_error_that_says_what_to_do() -> None:
    class Forgets:
        @hookimpl
        def backward(self, ctx: Context) -> None:
            ctx.loss.backward()

    with pytest.raises(HookError, match="plugin 'forgets': backward is a span and returned None"):
        tiny_trainer([Forgets()]).fit(num_steps=1)


def test_a_wrapper_that_loses_the_result_is_an_error() -> None:
    class Loses:
        @hookimpl(wrapper=True)
        def forward(self) -> Generator[None, Any, Any]:
            yield

    with pytest.raises(HookError, match=r"plugin 'loses': forward .* from a wrapper what `yield`"):
        tiny_trainer([Loses()]).fit(num_steps=1)


def test_a_moment_with_a_result_is_refused_in_strict_mode() -> None:
    class Returns:
        @hookimpl
        def on_step_end(self) -> int:
            return 1

    bus = Bus([Returns()], strict=True)
    with pytest.raises(HookError, match="on_step_end is a moment and returned 1"):
        bus.emitter().on_step_end(Context(bus))


class Forgets:
    """Wraps a decision and forgets to return the answers."""

    @hookimpl(wrapper=True)
    def skip_update(self) -> Generator[None, Any, Any]:
        yield


class Never:
    """Skips every update."""

    @hookimpl
    def skip_update(self) -> str:
        return "never"


@pytest.mark.parametrize("options", [{}, {"nan": "skip_step"}])
def test_a_decisions_wrapper_that_loses_the_answers_is_refused(options: dict[str, str]) -> None:
    trainer = tiny_trainer({"never": Never(), "forgets": Forgets()}, **options)
    with pytest.raises(HookError, match=r"'forgets': skip_update is a decision.*returned None"):
        trainer.fit(num_steps=1)


class Swallows:
    """Keeps an error of the forward pass to itself, and returns nothing."""

    @hookimpl(wrapper=True)
    def forward(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except RuntimeError:
            pass


def test_a_spans_wrapper_that_has_nothing_in_an_errors_place_is_refused() -> None:
    model = torch.nn.Linear(7, 1)  # does not fit the data
    with pytest.raises(HookError, match="'swallows': forward is a span and returned None"):
        tiny_trainer({"swallows": Swallows()}, model=model).fit(num_steps=1)
