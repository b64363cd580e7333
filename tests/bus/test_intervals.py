"""Intervals: one filter for every plugin."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tiny import hearing, tiny_trainer

from hatbus.errors import PluginError
from hatbus.events.training import EVENTS, MOMENT


def steps_heard(every: str, event: str = "on_step_end", **plan: int) -> list[int]:
    heard: list[int] = []
    trainer = tiny_trainer()
    key = "epoch_id" if "epoch" in event else "global_step_id"
    recorder = hearing([event], lambda _, values: heard.append(values[key]))
    trainer.bus.register(recorder, "filtered", overrides={"every": every})
    trainer.fit(**(plan or {"num_epochs": 4}))
    return heard


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        ("5 steps", [4, 9]),
        ("5 steps, first", [0, 4, 9]),
        ("5 steps, last", [4, 9, 11]),
        ("5 steps, first, last", [0, 4, 9, 11]),
        ("1 step", list(range(12))),
        ("2 epochs", [3, 4, 5, 9, 10, 11]),
        ("1000 h", []),
        ("1000 h, first", [0]),
        ("0.000001 s", list(range(1, 12))),
        ("0.000001 s, first", list(range(12))),
    ],
)
def test_a_plugin_hears_only_the_steps_it_is_due_in(every: str, steps: list[int]) -> None:
    assert steps_heard(every) == steps


def test_an_interval_in_epochs_filters_the_epochs_events_too() -> None:
    assert steps_heard("2 epochs", "on_epoch_end") == [1, 3]
    assert steps_heard("2 steps", "on_epoch_end") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("plan", "epochs"),
    [
        ({"num_epochs": 4}, [2, 3]),
        ({"num_steps": 12}, [2, 3]),
        ({"num_steps": 10}, [2, 3]),
        ({"num_steps": 9}, [2]),
        ({"num_steps": 5}, [1]),
    ],
)
def test_the_last_epoch_is_the_plans_in_steps_too(plan: dict[str, int], epochs: list[int]) -> None:
    assert steps_heard("3 epochs, last", "on_epoch_end", **plan) == epochs


def test_a_run_that_goes_on_in_its_last_epoch_is_in_its_last_epoch() -> None:
    heard: list[int] = []
    trainer = tiny_trainer()
    recorder = hearing(["on_step_end"], lambda _, values: heard.append(values["global_step_id"]))
    trainer.bus.register(recorder, "filtered", overrides={"every": "9 epochs, last"})
    trainer.fit(num_steps=4)  # its last epoch is the second, which it leaves in the middle
    trainer.fit(num_steps=8)
    assert heard == [3, 6, 7]


def test_begin_and_end_of_a_filtered_plugin_pair() -> None:
    heard: Counter[str] = Counter()
    moments = [e.name for e in EVENTS.values() if e.kind == MOMENT]
    trainer = tiny_trainer()
    recorder = hearing(moments, lambda event, _: heard.update([event]))
    trainer.bus.register(recorder, "filtered", overrides={"every": "3 steps"})
    trainer.fit(num_epochs=4)
    for name in ("step", "batch", "forward", "backward", "optimizer_step"):
        assert heard[f"on_{name}_begin"] == heard[f"on_{name}_end"] == 4
    assert heard["on_loop_begin"] == heard["on_loop_end"] == 1


def test_a_wrapper_that_is_not_due_is_passed_over() -> None:
    seen: list[Any] = []
    trainer = tiny_trainer()
    recorder = hearing(["optimizer_step"], lambda event, v: seen.append(v.get("global_step_id")))
    trainer.bus.register(recorder, "filtered", overrides={"every": "4 steps"})
    trainer.fit(num_steps=9)
    assert [s for s in seen if s is not None] == [3, 7]
    assert trainer.ctx.updates == 9


@pytest.mark.parametrize("every", ["often", "0 steps", "1.5 epochs", "-1 steps", "3", "3 weeks"])
def test_what_is_no_interval_is_told_what_is(every: str) -> None:
    with pytest.raises(PluginError, match=r"every=.* is no interval; accepted: '<n> steps'"):
        steps_heard(every)


def test_a_plugin_with_an_interval_may_leave_and_come_again() -> None:
    heard: list[str] = []
    sees = hearing(["on_step_end", "on_loop_end"], lambda event, _: heard.append(event))
    trainer = tiny_trainer()
    for _ in range(2):
        trainer.bus.register(sees, "sees", overrides={"every": "2 steps"})
        trainer.bus.unregister("sees")
    trainer.bus.register(sees, "sees", overrides={"every": "2 steps"})
    trainer.fit(num_steps=4)
    assert heard == ["on_step_end", "on_step_end", "on_loop_end"]  # of steps 1 and 3
