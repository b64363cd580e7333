"""The profile: what each plugin costs, and nothing when it is off."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_trainer, weights
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import HookError
from hatbus.insight.profile import SYNCHRONIZES, Cost, Profile, hearing_syncs, is_slow_update
from hatbus.loop.context import Context


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
    own = [str(cell) for cell in table.columns[0].cells if str(cell).startswith("core.")]
    assert (len(shares), len(own)) == (8, 5)
    assert 0 < sum(shares) <= 100.01  # each is rounded


LOOP = ("forward", "compute_loss", "backward", "optimizer_step")


def test_the_loops_own_parts_are_measured_too() -> None:
    class Slow(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01)
            return inputs.sum(1, keepdim=True) * self.weight

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

    class Data(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                time.sleep(0.01)
                yield batch

    profile, model = Profile(), Slow()
    batches = Data((torch.ones(2, 3), torch.ones(2, 1)) for _ in range(3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Trainer(model, optimizer, batches, nn.MSELoss(), {"sleeps": Sleeps()})
    profile.watch(trainer.bus)
    trainer.fit(num_epochs=1)
    parts = {event: profile.costs["core.batch_processor", event] for event in LOOP}
    assert {cost.calls for cost in parts.values()} == {3}
    assert 0.03 <= parts["forward"].seconds < profile.seconds - 0.12  # nobody's sleep but its own
    waits = profile.costs["core.loop", "next batch"]
    assert waits.calls == 4  # the end is waited for as well
    assert 0.03 <= waits.seconds < profile.seconds - 0.12
    assert sum(cost.seconds for cost in profile.costs.values()) <= profile.seconds


def test_what_a_plugin_lets_run_is_the_plugins() -> None:
    class Looks:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            ctx.batch = ctx.batches[0][1]
            ctx.emit.forward(ctx)

    profile, _ = profiled(looks=Looks())
    assert profile.costs["core.batch_processor", "forward"].calls == 5
    assert profile.costs["looks", "on_step_end"].calls == 5


@pytest.mark.parametrize(
    ("kind", "options", "is_slow"),
    [
        ("AdamW", {}, True),
        ("AdamW", {"foreach": True}, True),
        ("SGD", {}, True),
        ("AdamW", {"fused": True}, False),
        ("RMSprop", {}, False),  # torch has no fused one
    ],
)
def test_an_update_that_could_be_made_in_one_pass_is_named(
    kind: str, options: dict[str, Any], is_slow: bool
) -> None:
    optimizer = getattr(torch.optim, kind)([nn.Parameter(torch.ones(1))], lr=0.1, **options)
    profile = Profile()
    profile.update_is_slow = is_slow_update(optimizer, torch.device("cpu"))
    profile.seconds = 1.0
    profile.costs["core.batch_processor", "optimizer_step"] = Cost(9, 0.5)
    assert ("update takes 50% of the run" in profile.hint()) is is_slow
    assert ("fused=True" in profile.hint()) is is_slow
    profile.costs["core.batch_processor", "optimizer_step"] = Cost(9, 0.05)
    assert profile.hint() == ""  # not worth a line


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
    of_plugin = [event for event in events if event["name"] == "sleeps"]
    assert len(of_plugin) == 15  # five ends, and two parts of five wrappers
    assert {e["ph"] for e in events} == {"X"}
    assert {(e["name"], e["cat"]) for e in of_plugin} == {
        ("sleeps", "on_step_end"),
        ("sleeps", "forward"),
    }
    assert all(e["dur"] >= 9_000 for e in of_plugin)


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
    names, *_, syncs = (list(column.cells) for column in profile.table().columns)
    assert [(name, count) for name, count in zip(names, syncs, strict=True) if count] == [
        ("syncs", "3")
    ]


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
