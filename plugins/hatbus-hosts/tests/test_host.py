"""A loop of somebody else's as a host: here one that is written by hand, without any library."""

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from host_by_hand import (
    STEP_MOMENTS,
    STEPS,
    HandWritten,
    Mean,
    Recorder,
    Surrounds,
    batches,
    parts,
    run,
)
from torch import nn

from hatbus import Context, HatbusError, Trainer, hookimpl, plugin
from hatbus.loop import structure_of
from hatbus_hosts import Host


def test_every_moment_comes_as_in_hatbus_with_the_same_ids_and_losses() -> None:
    mine, theirs = Recorder(), Recorder()
    model, optimizer = parts()
    Trainer(model, optimizer, batches(), nn.functional.mse_loss, [mine]).fit(num_epochs=2)
    weights, _ = run(HandWritten([theirs]))
    assert theirs.heard == mine.heard
    assert len({event for event, *_ in mine.heard}) == 14
    assert all(torch.equal(weights[name], one) for name, one in model.state_dict().items())


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 7])
def test_a_run_that_goes_on_from_a_saved_state_ends_as_one_in_one_go(steps: int) -> None:
    whole, first, second = Mean(), Mean(), Mean()
    expected, _ = run(HandWritten([whole]))
    state = run(HandWritten([first]), stop_after=steps)
    weights, _ = run(HandWritten([second]), state=state)
    assert torch.equal(second.mean, whole.mean)
    assert second.count == whole.count == 2 * STEPS
    assert torch.equal(weights["weight"], expected["weight"])


def test_a_state_that_is_saved_inside_a_step_leaves_that_step_to_do() -> None:
    places: dict[str, list[int]] = {}
    host = HandWritten([Mean()])

    class Saves:
        @hookimpl
        def on_batch_begin(self, ctx: Context) -> None:
            places[f"{ctx.global_step_id} before"] = host.state_dict()["position"]

        @hookimpl
        def on_optimizer_step_end(self, ctx: Context) -> None:
            places[f"{ctx.global_step_id} after"] = host.state_dict()["position"]

    host.bus.register(Saves(), "saves")
    run(host)
    assert places["2 before"] == [0, 2, 2]
    assert places["2 after"] == [0, 3, 3]
    assert places["5 before"] == [1, 1, 5]


def test_states_are_given_back_before_those_who_report_prepare() -> None:
    heard: list[str] = []

    @plugin(stage="report")
    class Reports:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            heard.append(f"count {mean.count} at step {ctx.position.global_step}")

    state = run(HandWritten([Mean()]), stop_after=3)
    mean = Mean()
    run(HandWritten([mean, Reports()]), state=state)
    assert heard == ["count 3 at step 3"]


def test_wrappers_of_save_checkpoint_stand_around_the_saving_of_states() -> None:
    heard: list[str] = []

    class Flushes:
        @hookimpl(wrapper=True)
        def save_checkpoint(self) -> Generator[None, Any, Any]:
            heard.append("flushed")
            return (yield)

        def state_dict(self) -> dict[str, Any]:
            heard.append("saved")
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """Nothing to take."""

    run(HandWritten([Flushes()]), stop_after=2)
    assert heard == ["flushed", "saved"]


# ---- what cannot be delivered --------------------------------------------------------------------


class Skips:
    @hookimpl
    def skip_update(self) -> str:
        return "because"


class Replaces:
    @hookimpl
    def forward(self) -> int:
        return 1


class Saves:
    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        ctx.control.save("it is time")


@pytest.mark.parametrize(
    ("needing", "what"),
    [
        (Skips, "needs 'skip_update'"),
        (Replaces, "needs to replace 'forward'"),
        (Saves, "needs its request 'save'"),
    ],
)
def test_what_the_host_cannot_deliver_is_refused_when_it_is_made(needing: type, what: str) -> None:
    name = needing.__name__.lower()
    with pytest.raises(HatbusError, match=f"plugin '{name}' {what}, which HandWritten cannot"):
        HandWritten([Mean(), needing()])


def test_every_plugin_that_cannot_be_used_is_named() -> None:
    with pytest.raises(HatbusError) as caught:
        HandWritten([Skips(), Replaces()])
    assert [line.split("'")[1] for line in str(caught.value).splitlines()] == ["replaces", "skips"]


def test_a_host_that_is_given_a_way_to_save_is_asked_for_it() -> None:
    reasons: list[str] = []
    run(HandWritten([Saves()], save=reasons.append), epochs=1)
    assert reasons == ["it is time"] * STEPS


def test_a_validation_that_is_asked_for_comes_once() -> None:
    class Asks:
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.control.validate("it is time")

    heard = Recorder()

    def validate(reason: str) -> None:
        host.begin_validation()
        host.end_validation({"score": 1.0})

    host = HandWritten([Asks(), heard], validate=validate)
    run(host)
    names = [event for event, *_ in heard.heard if "validation" in event]
    assert names == ["on_validation_begin", "on_validation_end"]


def test_a_plugin_may_say_itself_what_it_asks_for() -> None:
    class Indirect:
        requests = ("validate",)

        @hookimpl
        def on_step_end(self) -> None:
            """Asks somewhere else."""

    with pytest.raises(HatbusError, match="its request 'validate'"):
        HandWritten([Indirect()])


def test_a_request_that_nobody_could_see_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def ask(ctx: Context) -> None:
        ctx.control.validate("now")

    class Hidden:
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ask(ctx)

    host = HandWritten([Hidden()])
    with caplog.at_level("WARNING", "hatbus"):
        run(host, epochs=2)
        host.begin(model=nn.Linear(1, 1), optimizer=None)
        host.ctx.control.validate("now")
        host.serve({})
        host.end()
    assert "validate: asked for by hidden, but HandWritten cannot do it" in caplog.text


def test_a_stop_ends_the_run_and_says_so_in_the_epoch() -> None:
    class Stops:
        cut: bool

        @hookimpl
        def on_step_end(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == 4:
                ctx.control.stop("run", "enough")

        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            self.cut = ctx.position.step != 0

    stops = Stops()
    host = HandWritten([stops])
    run(host)
    assert (host.ctx.position.global_step, stops.cut) == (5, True)


def test_a_change_of_the_models_structure_is_noticed_while_the_run_is_on() -> None:
    seen: list[int] = []
    hooks = torch.nn.modules.module._global_module_registration_hooks
    before = len(hooks)

    class Grows:
        @hookimpl
        def on_step_end(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == 2:
                ctx.model.more = nn.Linear(1, 1)
            seen.append(structure_of(ctx))

    host = HandWritten([Grows()])
    run(host, epochs=1)
    assert seen == [0, 0, 1, 1]
    host.ctx.model.more = nn.Linear(1, 1)
    assert structure_of(host.ctx) == 1
    assert len(hooks) == before


def test_a_call_of_the_model_that_failed_and_was_caught_does_not_silence_the_next() -> None:
    heard: list[int] = []

    class Hears:
        @hookimpl
        def on_forward_end(self, ctx: Context, model_outs: Any) -> None:
            heard.append(ctx.global_step_id)

    host = HandWritten([Hears()])
    model, optimizer = parts()
    host.begin(model=model, optimizer=optimizer)
    host.hear_forward(model)
    for width in (3, 2, 3):
        host.begin_batch(None)
        if width == 3:
            model(torch.ones(1, width))
        else:
            with pytest.raises(RuntimeError):
                model(torch.ones(1, width))
        host.end_step()
    host.end()
    assert heard == [0, 1, 2]  # of the one that failed at the end of its batch, without outputs


class Sees:
    """Notes of every batch whether the outputs were there."""

    def __init__(self) -> None:
        self.seen: list[bool] = []


class Named(Sees):
    """Is given no more than the outputs."""

    @hookimpl
    def on_batch_end(self, model_outs: Any) -> None:
        self.seen.append(model_outs is not None)


class Whole(Sees):
    """Reads the outputs off the run's state."""

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        self.seen.append(ctx.model_outs is not None)


class Everything(Sees):
    """Is given all that there is."""

    @hookimpl
    def on_batch_end(self, **given: Any) -> None:
        self.seen.append(given["model_outs"] is not None)


class Passes(Sees):
    """Stands around forward passes."""

    @hookimpl(wrapper=True)
    def forward(self) -> Generator[None, Any, Any]:
        outputs = yield
        self.seen.append(outputs is not None)
        return outputs


class Counts:
    @hookimpl
    def on_step_end(self, global_step_id: int) -> None:
        """Reads nothing of the model."""


def stepped(host: Host, before: dict[int, Callable[[], object]]) -> nn.Module:
    """Four steps of a model whose calls are heard; ``before`` says what to do before which."""
    model, optimizer = parts()
    host.begin(model=model, optimizer=optimizer)
    host.hear_forward(model)
    for step in range(4):
        before.get(step, list)()
        host.begin_batch(None)
        model(torch.ones(1, 3))
        host.end_step()
    return model


@pytest.mark.parametrize("kind", [Named, Whole, Everything, Passes])
def test_who_joins_in_mid_run_sees_what_the_model_returns_until_it_goes(kind: type[Sees]) -> None:
    late = kind()
    host = HandWritten([Counts()])
    model = stepped(
        host,
        {1: lambda: host.bus.register(late, "late"), 3: lambda: host.bus.unregister("late")},
    )
    assert late.seen == [True, True]
    assert not model._forward_hooks  # nobody sees the outputs: its calls cost what they did before
    host.end()


def test_a_model_has_no_hooks_after_the_run() -> None:
    for plugin_ in (Whole(), Passes(), Counts()):
        host = HandWritten([plugin_])
        model = stepped(host, {})
        host.end()
        assert not model._forward_hooks
        assert not model._forward_pre_hooks


# ---- spans that are opened without a call --------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (0.5, 0.5), (0.5,)])
def test_a_step_of_some_batches_is_told_alike_whether_or_not_its_spans_are_surrounded(
    weights: tuple[float, ...],
) -> None:
    told = []
    for around in ([], [Surrounds()]):
        recorder = Recorder()
        host = HandWritten([recorder, *around])
        model, optimizer = parts()
        host.begin(model=model, optimizer=optimizer)
        for committed in (True, False, None, True):
            for (x, y), weight in zip(batches(), weights, strict=False):
                host.begin_batch((x, y), weight)
                loss = nn.functional.mse_loss(model(x), y)
                host.begin_backward({"loss": loss}, loss)
                host.end_backward()  # what comes next ends the batch
            if committed is not None:
                host.begin_update()
                host.end_update(committed=committed)
            host.end_step()
        host.end()
        told.append((recorder.heard, host.ctx.updates, len(host.ctx.batches)))
    assert told[0] == told[1]
    heard, updates, count = told[0]
    assert (updates, count) == (2, len(weights))
    x, y = batches()[0]
    first = nn.functional.mse_loss(parts()[0](x), y).item()
    assert next(row for row in heard if row[0] == "on_batch_end")[-1] == {"loss": first}


@pytest.mark.parametrize("event", STEP_MOMENTS)
def test_who_joins_at_a_moment_of_a_step_hears_the_rest_of_it(event: str) -> None:
    """The same, whether or not its spans were surrounded before; and stands around what is left."""
    told = []
    for around in ([], [Surrounds()]):
        late, surrounds = Recorder(), Surrounds()

        def join(self: object, ctx: Context, late: Any = late, surrounds: Any = surrounds) -> None:
            if ctx.global_step_id == 1 and "late" not in ctx.bus.members:
                ctx.bus.register(late, "late")
                ctx.bus.register(surrounds, "surrounds_late")

        joins = type("Joins", (), {event: hookimpl(join)})()
        run(HandWritten([joins, Recorder(), *around]), epochs=1)
        told.append((late.heard, surrounds.steps))
    assert told[0] == told[1]
    spans = ("run_step", "run_batch", "forward", "optimizer_step")
    assert {(span, step) for span in spans for step in (2, 3)} <= {*told[0][1]}


class Clips:
    """Clips the gradients of every step."""

    times = 0

    @hookimpl
    def clip_gradients(self) -> bool:
        self.times += 1
        return True


class Updates:
    """Stands around every update."""

    times = 0

    @hookimpl(wrapper=True)
    def optimizer_step(self) -> Generator[None, Any, Any]:
        self.times += 1
        return (yield)


@pytest.mark.parametrize("kind", [Clips, Updates])
def test_who_has_a_part_in_updates_alone_has_it_in_every_one(kind: type) -> None:
    plugin_ = kind()
    run(HandWritten([Counts(), plugin_]))
    assert plugin_.times == 2 * STEPS
