"""Requests: stop, save and validate are served at the next boundary, and told when they are not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tiny import Listens, hearing, tiny_trainer

from hatbus import hookimpl
from hatbus.errors import HatbusError
from hatbus.loop.context import Context


def asking(wish: str, *, step: int, **arguments: Any) -> object:
    class Asks:
        @hookimpl
        def on_step_end(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == step:
                getattr(ctx.control, wish)(**arguments)

    return Asks()


def test_a_stop_of_the_run_is_served_after_the_step_and_logged_with_its_author(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = tiny_trainer({"asks": asking("stop", step=3, what="run", reason="enough")})
    with caplog.at_level(logging.INFO, "hatbus"):
        trainer.fit(num_epochs=9)
    assert trainer.ctx.global_step_id == 3
    assert "stop run: asked for by asks (enough)" in caplog.text


def test_a_stop_of_the_epoch_begins_the_next_one() -> None:
    steps: list[tuple[int, int]] = []
    recorder = hearing(["on_step_end"], lambda _, v: steps.append((v["epoch_id"], v["step_id"])))
    plugins = {"asks": asking("stop", step=1, what="epoch", reason="dull"), "rec": recorder}
    tiny_trainer(plugins).fit(num_epochs=2)
    assert steps == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_a_request_that_nobody_serves_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tiny_trainer({"asks": asking("save", step=0, reason="fear")}).fit(num_steps=2)
    assert "save: asked for by asks, but nothing did it" in caplog.text


def test_an_unknown_stop_is_refused() -> None:
    with pytest.raises(HatbusError, match="cannot stop 'world'; accepted: 'epoch', 'run'"):
        tiny_trainer([asking("stop", step=0, what="world")]).fit(num_steps=1)


def test_a_request_names_its_author_also_after_that_one_registered_another_plugin() -> None:
    class Recruits:
        @hookimpl
        def on_step_begin(self, ctx: Context, global_step_id: int) -> None:
            ctx.bus.register(Listens(), f"late{global_step_id}")
            ctx.control.stop("epoch", "done")
            self.by = ctx.control.pending[-1].by

    recruits = Recruits()
    tiny_trainer({"recruits": recruits}).fit(num_steps=2)
    assert recruits.by == "recruits"


def test_a_stop_of_an_epoch_that_is_over_ends_neither_the_run_nor_the_next_epoch() -> None:
    class Stops:
        @hookimpl
        def on_epoch_end(self, ctx: Context, epoch_id: int) -> None:
            if epoch_id < 2:
                ctx.control.stop("epoch", "over anyway")

    trainer = tiny_trainer([Stops()])
    trainer.fit(num_epochs=3)
    assert (trainer.ctx.position.epoch, trainer.ctx.position.global_step) == (3, 9)


class SavesTheBest:
    """Asks for a validation at an epoch's end and, in it, for a checkpoint; provides both."""

    def __init__(self) -> None:
        self.saved: list[str] = []

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        ctx.control.validate("an epoch is over")

    @hookimpl
    def validate(self) -> dict[str, float]:
        return {"val/loss": 1.0}

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        ctx.control.save("the best so far")

    @hookimpl
    def save_checkpoint(self, reason: str) -> str:
        self.saved.append(reason)
        return "path"


def test_what_the_last_requests_ask_for_is_served_too() -> None:
    play = SavesTheBest()
    tiny_trainer([play]).fit(num_epochs=1)
    assert play.saved == ["the best so far"]


def test_requests_that_ask_for_one_another_end() -> None:
    class Circle(SavesTheBest):
        @hookimpl
        def on_validation_end(self, ctx: Context) -> None:
            self.saved.append("once more")
            ctx.control.validate("again")

    play = Circle()
    tiny_trainer([play]).fit(num_epochs=1)
    assert 1 < len(play.saved) < 8


def test_a_request_that_comes_too_late_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Late:
        @hookimpl
        def on_loop_end(self, ctx: Context) -> None:
            ctx.control.save("the end")

    tiny_trainer({"late": Late()}).fit(num_steps=1)
    assert "save: asked for by late too late: the run is over" in caplog.text
