"""Decisions: what is skipped or vetoed, for which reason, and what counts as an update."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer, weights

from hatbus import hookimpl
from hatbus.data.task_sampler import AllTasks
from hatbus.errors import HatbusError
from hatbus.loop.context import Context
from hatbus.loop.loop import groups_of


def test_a_skipped_update_is_a_step_and_no_update(caplog: pytest.LogCaptureFixture) -> None:
    class Skips:
        @hookimpl
        def skip_update(self, global_step_id: int) -> str | None:
            return "because" if global_step_id < 3 else None

    trainer = tiny_trainer({"skips": Skips()})
    with caplog.at_level(logging.INFO, "hatbus"):
        trainer.fit(num_steps=5)
    assert (trainer.ctx.global_step_id, trainer.ctx.updates) == (4, 2)
    assert "step 0: update skipped by skips (because)" in caplog.text


def test_a_skipped_batch_is_left_out_and_a_step_without_batches_makes_no_update() -> None:
    class Skips:
        @hookimpl
        def skip_batch(self, global_step_id: int) -> str | None:
            return "dirty" if global_step_id == 1 else None

    ran: list[str] = []
    recorder = hearing(["on_batch_end"], lambda e, _: ran.append(e))
    trainer = tiny_trainer({"skips": Skips(), "rec": recorder})
    trainer.fit(num_steps=3)
    assert len(ran) == 2
    assert trainer.ctx.updates == 2


def test_what_is_kept_of_a_groups_micro_batches_is_averaged_over_what_is_kept() -> None:
    data = batches(3)

    class SkipsTheSecond:
        @hookimpl
        def skip_batch(self, batch: Any) -> str | None:
            return "dirty" if batch[0] is data[1][0] else None

    skipping = tiny_trainer([SkipsTheSecond()], data, accumulate=3)
    skipping.fit(num_steps=1)
    without = tiny_trainer(data=[data[0], data[2]], accumulate=3)
    without.fit(num_steps=1)
    torch.testing.assert_close(weights(skipping), weights(without), rtol=0, atol=1e-7)


def test_a_skipped_batch_changes_nothing_for_other_groups_and_tasks() -> None:
    weighed: list[tuple[str, float]] = []

    class Skips:
        def __init__(self) -> None:
            self.asked = 0

        @hookimpl
        def skip_batch(self, ctx: Context) -> str | None:
            self.asked += 1
            return "first of a" if self.asked == 1 else None

        @hookimpl
        def on_batch_end(self, ctx: Context) -> None:
            weighed.append((ctx.task, ctx.weight))

    sampler = AllTasks({"a": 2})
    data = {"a": batches(4), "b": batches(2, seed=1)}
    tiny_trainer([Skips()], data, accumulate=2, task_sampler=sampler).fit(num_steps=1)
    assert weighed == [("a", 1.0), ("a", 0.5), ("a", 0.5), ("b", 0.5), ("b", 0.5)]


def test_groups_are_told_apart_where_a_short_one_comes_before_a_whole_one() -> None:
    one = [("a", "x", 1.0), ("a", "y", 0.5), ("a", "z", 0.5), ("b", "u", 0.5), ("b", "v", 0.5)]
    assert [[batch for _, batch, _ in group] for group in groups_of(one)] == [
        ["x"],
        ["y", "z"],
        ["u", "v"],
    ]


def test_a_decision_that_is_no_reason_is_refused() -> None:
    class Skips:
        @hookimpl
        def skip_update(self) -> bool:
            return True

    with pytest.raises(HatbusError, match="is a decision and returned True; accepted: a reason"):
        tiny_trainer([Skips()]).fit(num_steps=1)


def test_a_vetoed_checkpoint_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    class Vetoes:
        @hookimpl
        def veto_checkpoint(self, reason: str) -> str:
            return f"not for {reason}"

    class Saves:
        @hookimpl
        def save_checkpoint(self) -> str:
            raise AssertionError("vetoed")

    trainer = tiny_trainer({"vetoes": Vetoes(), "saves": Saves()})
    with caplog.at_level(logging.INFO, "hatbus"):
        assert trainer.ctx.save("fun") is False
    assert "no checkpoint (fun): vetoed by vetoes (not for fun)" in caplog.text


def test_a_step_that_fails_before_its_update_has_not_committed_one() -> None:
    committed: list[bool] = []

    class Breaks:
        @hookimpl
        def on_step_begin(self, global_step_id: int) -> None:
            if global_step_id == 1:
                raise ValueError("broken")

        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            committed.append(ctx.committed)

    with pytest.raises(ValueError, match="broken"):
        tiny_trainer([Breaks()]).fit(num_steps=2)
    assert committed == [True, False]


def test_updates_are_counted_in_a_step_of_a_plugins_own_whether_anybody_watches_or_not() -> None:
    class OwnStep:
        @hookimpl
        def run_step(self, ctx: Any) -> bool:
            ctx.optimizer.zero_grad()
            ((ctx.task, ctx.batch, ctx.weight),) = ctx.batches
            ctx.emit.run_batch(ctx)
            ctx.emit.clip_gradients(ctx)
            return ctx.emit.optimizer_step(ctx)

    class Watches:
        @hookimpl
        def on_optimizer_step_end(self) -> None: ...

    for plugins in ([OwnStep()], [OwnStep(), Watches()]):
        ctx = tiny_trainer(plugins).fit(num_steps=3)
        assert (ctx.updates, ctx.committed) == (3, True)
