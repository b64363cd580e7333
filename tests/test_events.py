"""Every event: its place in the loop, its arguments, and that begin and end always pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer

from hatbus import hookimpl
from hatbus.context import Context
from hatbus.events import DECISION, EVENTS, MOMENT, PAIRS, SPAN
from hatbus.payload import ARGUMENTS, LOOP

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
    *2 * ["on_epoch_begin", *3 * ONE_STEP, "on_epoch_end"],
    "on_loop_end",
]
MOMENTS = [e.name for e in EVENTS.values() if e.kind == MOMENT]
BEGINS = [begin for begin, _ in PAIRS.values()]


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


@pytest.mark.parametrize("event", [e for e in EVENTS.values() if e.kind != DECISION])
def test_every_event_carries_what_it_says(event: Any) -> None:
    assert set(event.arguments) <= set(ARGUMENTS)
    assert event.arguments[: len(LOOP)] == LOOP
    seen: list[dict[str, Any]] = []
    recorder = hearing([event.name], lambda name, values: seen.append({"event": name, **values}))
    trainer = tiny_trainer([recorder])
    emit_by_hand = {
        "on_log": lambda ctx: ctx.log({"a": 1}),
        "on_checkpoint_saved": lambda ctx: ctx.emit.on_checkpoint_saved(ctx, "p"),
        "validate": lambda ctx: ctx.emit.validate(ctx, "r"),
        "on_validation_begin": lambda ctx: ctx.emit.validate(ctx, "r"),
        "on_validation_end": lambda ctx: ctx.emit.validate(ctx, "r"),
        "save_checkpoint": lambda ctx: ctx.save("r"),
        "load_checkpoint": lambda ctx: ctx.emit.load_checkpoint(ctx, "p"),
        "export_model": lambda ctx: ctx.emit.export_model(ctx, "r"),
        "on_exception": lambda ctx: ctx.emit.on_exception(ctx, ValueError("e")),
    }
    if event.name in emit_by_hand:
        emit_by_hand[event.name](trainer.ctx)
    else:
        trainer.fit(num_epochs=1)
    first = seen[0]
    assert first["event"] == event.name
    assert first["model"] is trainer.ctx.model
    assert first["optimizer"] is trainer.ctx.optimizer
    if event.name == "on_batch_end":
        assert first["model_outs"].shape == (4, 1)
        assert torch.equal(first["batch"][0], batches(3)[0][0])
        assert list(first["losses"]) == ["loss"]


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
    """A plugin that raises in one event of one step."""

    def raising(self: object, ctx: Context) -> None:
        if ctx.global_step_id == step or event.startswith(("on_loop", "on_epoch")):
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
