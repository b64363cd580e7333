"""Every event: its place in the loop, its arguments, and that begin and end always pair."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import batches, hearing, tiny_trainer

from hatbus import hookimpl
from hatbus.events.payload import ARGUMENTS, BATCH, LOOP
from hatbus.events.training import DECISION, EVENTS, MOMENT, PAIRS, SPAN
from hatbus.loop.context import Context

ONE_BATCH = [
    "on_batch_begin",
    "on_forward_begin",
    "on_forward_end",
    "on_backward_begin",
    "on_backward_end",
    "on_batch_end",
]
ONE_STEP = [
    "on_step_begin",
    *ONE_BATCH,
    "on_optimizer_step_begin",
    "on_optimizer_step_end",
    "on_step_end",
]
ONE_RUN = [
    "on_loop_begin",
    *2 * ["on_epoch_begin", *3 * ONE_STEP, "on_log", "on_epoch_end"],  # the mean training loss
    "on_loop_end",
]
MOMENTS = [e.name for e in EVENTS.values() if e.kind == MOMENT]
BEGINS = [begin for begin, _ in PAIRS.values()]


def test_the_public_table_of_events_is_whole_whatever_else_was_imported() -> None:
    code = "from hatbus.events import EVENTS; print(*EVENTS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*EVENTS]
    assert len(EVENTS) > 30


class Evaluates:
    """Stands in for the plugins that provide the spans nobody provides."""

    @hookimpl
    def validate(self) -> dict[str, float]:
        return {"accuracy": 1.0}

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        if ctx.exception is None:
            ctx.emit.validate(ctx, "the test wants it")


def heard(*plugins: object, events: list[str] = MOMENTS, **options: Any) -> list[str]:
    """The events of a two-epoch run of three steps each, in order; errors are let through."""
    log: list[str] = []
    recorder = hearing(events, lambda event, _: log.append(event))
    trainer = tiny_trainer({"recorder": recorder, **{f"p{i}": p for i, p in enumerate(plugins)}})
    try:
        trainer.fit(num_epochs=2)
    except BaseException as error:
        log.append(type(error).__name__)
    return log


def test_moments_come_in_the_order_of_the_loop() -> None:
    assert heard() == ONE_RUN


def test_every_span_of_training_runs_in_its_place() -> None:
    spans = [e.name for e in EVENTS.values() if e.kind != MOMENT]
    log = [name for name in heard(events=spans) if not name.endswith("done")]
    batch = ["skip_batch", "run_batch", "forward", "compute_loss", "backward"]
    step = ["run_step", *batch, "clip_gradients", "skip_update", "optimizer_step"]
    assert log == ["run_loop", *2 * ["run_epoch", *3 * step]]


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_documented_in_one_order(event: str) -> None:
    doc = EVENTS[event].doc
    places = [doc.find(f"\n    {part}:") for part in ("When", "May change", "Returns", "On error")]
    assert all(place > 0 for place in places), f"{event} leaves out a part"
    assert places == sorted(places)


BY_HAND: dict[str, Any] = {
    "on_log": lambda ctx: ctx.log({"a": 1}),
    "on_checkpoint_saved": lambda ctx: ctx.emit.on_checkpoint_saved(ctx, Path("p")),
    "validate": lambda ctx: ctx.emit.validate(ctx, "r"),
    "on_validation_begin": lambda ctx: ctx.emit.validate(ctx, "r"),
    "on_validation_end": lambda ctx: ctx.emit.validate(ctx, "r"),
    "save_checkpoint": lambda ctx: ctx.save("r"),
    "veto_checkpoint": lambda ctx: ctx.save("r"),
    "load_checkpoint": lambda ctx: ctx.emit.load_checkpoint(ctx, Path("p")),
    "export_model": lambda ctx: ctx.emit.export_model(ctx, "r"),
    "on_prediction_begin": lambda ctx: ctx.emit.on_prediction_begin(ctx),
    "on_prediction_end": lambda ctx: ctx.emit.on_prediction_end(ctx),
    "write_outputs": lambda ctx: ctx.emit.write_outputs(ctx, [3]),
    "on_exception": lambda ctx: ctx.emit.on_exception(ctx, ValueError("e")),
}
"""How the events come about that a plain run does not have."""
TYPES = {
    "samples": list,
    "reason": str,
    "path": Path,
    "logs": dict,
    "kind": str,
    "exception": ValueError,
}


def first_call(event: str) -> dict[str, Any]:
    """The arguments of an event when it comes for the first time."""
    seen: list[dict[str, Any]] = []

    def note(_: str, values: dict[str, Any]) -> None:
        if values:
            ctx = values["ctx"]
            own = {name: getattr(ctx, name) for name in BATCH if name != "ctx"}
            seen.append({"values": values, "own": {"ctx": ctx, **own}})

    trainer = tiny_trainer([hearing([event], note)])
    if event in BY_HAND:
        BY_HAND[event](trainer.ctx)
    else:
        trainer.fit(num_epochs=1)
    return seen[0]


@pytest.mark.parametrize("event", EVENTS.values(), ids=list(EVENTS))
def test_every_event_carries_what_it_says(event: Any) -> None:
    assert set(event.arguments) <= set(ARGUMENTS)
    assert event.arguments[: len(LOOP)] == LOOP
    first = first_call(event.name)
    assert list(first["values"]) == list(event.arguments)
    for name, value in first["values"].items():
        if name in TYPES:
            assert isinstance(value, TYPES[name])
        else:
            assert value is first["own"][name]


def test_the_events_of_a_batch_carry_the_batch() -> None:
    (inputs, target), *_ = batches(3)
    for event in ("skip_batch", "run_batch", "on_batch_begin", "forward", "on_batch_end"):
        values = first_call(event)["values"]
        assert values["batch"][0].equal(inputs)
        assert values["batch"][1].equal(target)
        assert values["task"] is None
    for event in ("on_forward_end", "compute_loss", "backward", "on_backward_end", "on_batch_end"):
        assert first_call(event)["values"]["model_outs"].shape == (4, 1)
    for event in ("backward", "on_backward_begin", "on_batch_end", "skip_update", "on_step_end"):
        assert list(first_call(event)["values"]["losses"]) == ["loss"]


def test_begin_and_end_have_the_same_ids() -> None:
    ids: list[tuple[int, int, int]] = []
    note = lambda _, values: ids.append(  # noqa: E731
        (values["epoch_id"], values["step_id"], values["global_step_id"])
    )
    tiny_trainer([hearing(["on_step_begin", "on_step_end"], note)]).fit(num_epochs=2)
    steps = [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 4), (1, 2, 5)]
    assert ids == [step for step in steps for _ in range(2)]


def test_loop_end_names_the_last_epoch_and_step_that_ran() -> None:
    ids: list[tuple[int, int, int]] = []
    note = lambda _, values: ids.append(  # noqa: E731
        (values["epoch_id"], values["step_id"], values["global_step_id"])
    )
    tiny_trainer([hearing(["on_loop_end"], note)]).fit(num_epochs=2)
    assert ids == [(1, 2, 5)]


def fails_in(event: str, error: BaseException, step: int = 1) -> object:
    """A plugin that raises in one event of one step; in others the first time that they come."""

    def raising(self: object, ctx: Context) -> None:
        is_moment_of_a_step = EVENTS[event].kind == MOMENT and "losses" in EVENTS[event].arguments
        if ctx.global_step_id == step or not is_moment_of_a_step:
            raise error

    raising.__name__ = event
    return type("Failing", (), {event: hookimpl(raising)})()


PAIRED = [name for name in MOMENTS if any(name in pair for pair in PAIRS.values())]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()], ids=["bug", "ctrl_c"])
@pytest.mark.parametrize("event", PAIRED)
def test_an_end_follows_every_begin_whatever_fails(event: str, error: BaseException) -> None:
    log = heard(fails_in(event, error), Evaluates())
    assert log[-1] == type(error).__name__
    open_spans: list[str] = []
    for name in log[:-1]:
        if name.endswith("_begin"):
            open_spans.append(name.removesuffix("_begin"))
        elif name.endswith("_end"):
            assert open_spans.pop() == name.removesuffix("_end")
    assert open_spans == []
    assert log.count("on_exception") == (0 if event == "on_loop_end" else 1)


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()], ids=["bug", "ctrl_c"])
def test_ends_unwind_in_reverse_order_of_the_begins(error: BaseException) -> None:
    log = heard(fails_in("on_forward_begin", error, step=0))
    assert log == [
        "on_loop_begin",
        "on_epoch_begin",
        "on_step_begin",
        "on_batch_begin",
        "on_forward_begin",
        "on_forward_end",
        "on_batch_end",
        "on_step_end",
        "on_epoch_end",
        "on_exception",
        "on_loop_end",
        type(error).__name__,
    ]


INSIDE = {
    "run_loop": [],
    "run_epoch": ["epoch"],
    "run_step": ["epoch", "step"],
    "skip_batch": ["epoch", "step"],
    "run_batch": ["epoch", "step", "batch"],
    "forward": ["epoch", "step", "batch", "forward"],
    "compute_loss": ["epoch", "step", "batch"],
    "backward": ["epoch", "step", "batch", "backward"],
    "clip_gradients": ["epoch", "step"],
    "skip_update": ["epoch", "step"],
    "optimizer_step": ["epoch", "step", "optimizer_step"],
    "validate": ["epoch", "validation"],
    "write_outputs": ["epoch"],
    "veto_checkpoint": ["epoch"],
    "save_checkpoint": ["epoch"],
    "load_checkpoint": [],
    "export_model": ["epoch"],
}
"""What is open, besides the loop, where the body of a span or decision fails."""


class AsksForAll:
    """Makes the spans happen that a plain run does not have, each in its usual place."""

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        ctx.emit.load_checkpoint(ctx, Path("p"))

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        if ctx.exception is None and ctx.global_step_id == 1:
            ctx.control.validate("the test wants it")
            ctx.control.save("the test wants it")

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        if ctx.exception is None:
            ctx.emit.export_model(ctx, "the test wants it")
            ctx.emit.write_outputs(ctx, None)


def test_the_failing_bodies_are_of_all_spans_and_decisions() -> None:
    assert list(INSIDE) == [e.name for e in EVENTS.values() if e.kind != MOMENT]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()], ids=["bug", "ctrl_c"])
@pytest.mark.parametrize("span", INSIDE)
def test_what_is_open_ends_in_reverse_when_a_body_fails(span: str, error: BaseException) -> None:
    log = heard(fails_in(span, error), AsksForAll())
    opened = INSIDE[span]
    ends = [f"on_{name}_end" for name in reversed(opened)]
    assert log[-len(ends) - 3 :] == [*ends, "on_exception", "on_loop_end", type(error).__name__]
    begun = [name.removeprefix("on_").removesuffix("_begin") for name in log if "_begin" in name]
    for name in set(begun):
        assert log.count(f"on_{name}_begin") == log.count(f"on_{name}_end")


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()], ids=["bug", "ctrl_c"])
@pytest.mark.parametrize("part", ["loader", "model", "loss", "gradient", "optimizer"])
def test_what_is_open_ends_in_reverse_when_the_users_own_part_fails(
    part: str, error: BaseException
) -> None:
    opened = {
        "loader": ["epoch"],
        "model": ["epoch", "step", "batch", "forward"],
        "loss": ["epoch", "step", "batch"],
        "gradient": ["epoch", "step", "batch", "backward"],
        "optimizer": ["epoch", "step", "optimizer_step"],
    }[part]
    log: list[str] = []
    trainer = tiny_trainer(
        [hearing(MOMENTS, lambda event, _: log.append(event))], Failing(part, error)
    )
    failing: Failing = trainer.ctx.data_loader
    trainer.ctx.model.register_forward_hook(lambda *_: failing.at("model"))
    trainer.ctx.model.weight.register_hook(lambda _: failing.at("gradient"))
    trainer.ctx.optimizer.register_step_pre_hook(lambda *_: failing.at("optimizer"))
    loss = trainer.bus.members["core.batch_processor"].plugin
    loss.loss = lambda outs, target: failing.at("loss") or (outs - target).square().mean()
    with pytest.raises(type(error)):
        trainer.fit(num_epochs=2)
    ends = [f"on_{name}_end" for name in reversed(opened)]
    assert log[-len(ends) - 2 :] == [*ends, "on_exception", "on_loop_end"]
    assert log.count("on_step_begin") == log.count("on_step_end") == (1 if part == "loader" else 2)


class Failing:
    """Three batches, and a failure somewhere in the second step."""

    def __init__(self, part: str, error: BaseException) -> None:
        self.part, self.error, self.given = part, error, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in batches(3):
            self.given += 1
            self.at("loader")
            yield batch

    def at(self, part: str) -> None:
        """Fails if it is time."""
        if part == self.part and self.given == 2:
            raise self.error


def test_every_teardown_runs_once_although_another_one_failed() -> None:
    log: list[str] = []

    def ending(name: str, *, fails: bool) -> object:
        def on_loop_end(self: object) -> None:
            log.append(name)
            if fails:
                raise ValueError(name)

        return type("Ending", (), {"on_loop_end": hookimpl(on_loop_end)})()

    plugins = {n: ending(n, fails=n in "bd") for n in "abcd"}
    with pytest.raises(ValueError, match="b") as caught:
        tiny_trainer(plugins).fit(num_epochs=1)
    assert log == ["a", "b", "c", "d"]
    notes = "\n".join(caught.value.__notes__)
    assert "in plugin 'b'" in notes
    assert "then ValueError: d (in plugin 'd'" in notes


def test_a_failing_plugin_is_named_with_event_step_and_task() -> None:
    failing = fails_in("on_batch_end", ValueError("bug"))
    with pytest.raises(ValueError, match="bug") as caught:
        tiny_trainer({"mine": failing}, data={"det": batches(3)}).fit(num_epochs=1)
    assert caught.value.__notes__ == [
        f"in plugin 'mine' ({type(failing).__module__}), on_batch_end, step 1, task 'det'"
    ]


def test_the_table_of_events_is_the_hookspec() -> None:
    assert {e.kind for e in EVENTS.values()} == {SPAN, MOMENT, DECISION}
    assert set(BEGINS) <= set(EVENTS)
