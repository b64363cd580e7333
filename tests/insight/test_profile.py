"""The profile: what each plugin costs, and nothing when it is off."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_trainer, weights

from hatbus import hookimpl
from hatbus.errors import HookError
from hatbus.insight.profile import SYNCHRONIZES, Profile, hearing_syncs


class Sleeps:
    @hookimpl
    def on_step_end(self) -> None:
        time.sleep(0.01)

    @hookimpl(wrapper=True)
    def forward(self) -> Generator[None, Any, Any]:
        time.sleep(0.01)
        result = yield
        time.sleep(0.01)
        return result


class Quick:
    @hookimpl
    def on_step_end(self) -> None: ...


def profiled(**plugins: object) -> tuple[Profile, Any]:
    profile, trainer = Profile(), tiny_trainer(plugins)
    profile.watch(trainer.bus)
    trainer.fit(num_steps=5)
    return profile, trainer


def test_calls_and_time_are_counted_per_plugin_and_event() -> None:
    profile, _ = profiled(sleeps=Sleeps(), quick=Quick())
    end, forward = profile.costs["sleeps", "on_step_end"], profile.costs["sleeps", "forward"]
    assert (end.calls, forward.calls, profile.steps) == (5, 5, 5)
    assert end.seconds >= 0.05  # five sleeps of 10 ms; a busy machine only adds to them
    assert forward.seconds >= 0.1
    assert profile.costs["quick", "on_step_end"].seconds < end.seconds
    assert profile.seconds >= end.seconds + forward.seconds
    assert [key for key, _ in profile.dearest()][-1] == ("quick", "on_step_end")


def test_shares_are_of_the_whole_run_and_add_up_to_no_more_than_it() -> None:
    class Prepares:
        @hookimpl
        def on_loop_begin(self) -> None:
            time.sleep(0.05)

    profile, _ = profiled(prepares=Prepares(), sleeps=Sleeps())
    table = profile.table()
    heads = [str(column.header) for column in table.columns]
    assert heads == ["plugin", "event", "calls", "total ms", "us each", "% of run"]
    shares = [float(str(cell)) for cell in table.columns[5].cells]
    assert len(shares) == 3
    assert 0 < sum(shares) <= 100.01  # each is rounded


def test_the_time_inside_a_wrapper_is_not_the_wrappers() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def run_step(self) -> Generator[None, Any, Any]:
            return (yield)

    profile, _ = profiled(wraps=Wraps(), sleeps=Sleeps())
    assert profile.costs["wraps", "run_step"].seconds < profile.seconds / 2


def test_a_profiled_run_trains_the_same_weights() -> None:
    _, trainer = profiled(quick=Quick(), sleeps=Sleeps())
    plain = tiny_trainer()
    plain.fit(num_steps=5)
    assert weights(trainer).equal(weights(plain))


def test_errors_keep_their_type_and_name_the_plugin() -> None:
    class Fails:
        @hookimpl
        def on_step_end(self) -> None:
            raise ValueError("bug")

    with pytest.raises(ValueError, match="bug") as caught:
        profiled(fails=Fails())
    assert "in plugin 'fails'" in caught.value.__notes__[0]


def test_the_trace_is_in_the_trace_event_format(tmp_path: Path) -> None:
    profile, _ = profiled(sleeps=Sleeps())
    profile.write_trace(tmp_path / "profile.json")
    events = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    assert len(events) == 15  # five ends, and two parts of five wrappers
    assert {e["ph"] for e in events} == {"X"}
    assert {(e["name"], e["cat"]) for e in events} == {
        ("sleeps", "on_step_end"),
        ("sleeps", "forward"),
    }
    assert all(e["dur"] >= 9_000 for e in events)


def test_a_wait_for_the_gpu_is_charged_to_the_plugin_that_runs() -> None:
    """torch's own warning text; the debug mode that raises it needs a GPU."""

    class Syncs:
        @hookimpl
        def on_step_end(self) -> None:
            warnings.warn(f"{SYNCHRONIZES} (Triggered internally)", UserWarning, stacklevel=1)

    profile, trainer = Profile(), tiny_trainer({"syncs": Syncs(), "quick": Quick()})
    profile.watch(trainer.bus)
    with hearing_syncs(profile):
        trainer.fit(num_steps=3)
    assert profile.costs["syncs", "on_step_end"].syncs == 3
    assert profile.costs["quick", "on_step_end"].syncs == 0
    assert [*profile.table().columns[-1].cells] == ["3", ""]


def test_a_wait_in_another_thread_is_charged_to_nobody() -> None:
    """A writer that waits for the GPU in the background holds up no step."""

    class Writes:
        @hookimpl
        def on_step_end(self) -> None:
            thread = threading.Thread(target=warnings.warn, args=(SYNCHRONIZES, UserWarning))
            thread.start()
            thread.join()

    profile, trainer = Profile(), tiny_trainer({"writes": Writes()})
    profile.watch(trainer.bus)
    with hearing_syncs(profile):
        trainer.fit(num_steps=3)
    cost = profile.costs["writes", "on_step_end"]
    assert (cost.calls, cost.syncs) == (3, 0)


def test_without_a_profile_the_plugins_own_functions_are_called() -> None:
    plugin = Quick()
    trainer = tiny_trainer([plugin])
    frozen = trainer.bus.emitter().on_step_end
    assert plugin.on_step_end in frozen.__globals__.values()


@pytest.mark.parametrize("event", ["run_step", "skip_update", "on_step_end"])
def test_a_profiled_wrapper_that_yields_twice_is_refused_as_ever(event: str) -> None:
    names: dict[str, Any] = {}
    exec(f"def {event}(self):\n    result = yield\n    yield result", names)
    wraps = type("Wraps", (), {event: hookimpl(names[event], wrapper=True)})()
    trainer = tiny_trainer({"wraps": wraps})
    Profile().watch(trainer.bus)
    with pytest.raises(HookError, match=f"'wraps': {event} is a wrapper and yielded twice"):
        trainer.fit(num_steps=1)
