"""A loop of somebody else's as a host: here one that is written by hand, without any library."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import Bus, Context, HatbusError, Trainer, hookimpl, plugin
from hatbus.events import EVENTS, MOMENT
from hatbus_hosts import Capabilities, Host, rows

STEPS = 4


class HandWritten(Host):
    """Tells everything but that which its table denies."""

    name = "HandWritten"
    capabilities = Capabilities(
        {
            row: True
            for row in rows()
            if not row.endswith("replaced") or row in ("clip_gradients replaced",)
            if row not in ("skip_batch", "skip_update", "request save", "request validate")
        }
    )


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(4), x.sum(dim=1, keepdim=True).split(4), strict=True))


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def run(
    host: Host,
    epochs: int = 2,
    *,
    state: tuple[dict[str, Any], ...] = (),
    stop_after: int | None = None,
) -> tuple[dict[str, Any], ...]:
    """A training loop; gives everything that a checkpoint of its own would hold."""
    model, optimizer = parts()
    if state:
        model.load_state_dict(state[0])
        host.load_state_dict(state[1])
    host.begin(model=model, optimizer=optimizer, num_epochs=epochs, steps_per_epoch=STEPS)
    place, stopped = host.ctx.position, []
    try:
        while place.epoch < epochs and not stopped:
            host.begin_epoch()
            for x, y in batches()[place.step :]:
                host.begin_batch((x, y))
                host.begin_forward()
                outs = host.end_forward(model(x))
                loss = nn.functional.mse_loss(outs, y)
                optimizer.zero_grad()
                host.begin_backward({"loss": loss}, loss)
                loss.backward()
                host.end_backward()
                host.begin_update()
                optimizer.step()
                host.end_update()
                host.end_step()
                host.serve({"stop run": stopped.append})
                if place.global_step == stop_after:
                    return _copied(model), host.state_dict()
                if stopped:
                    break
            host.end_epoch(is_complete=not stopped)
        host.end()
    except BaseException as error:
        host.fail(error)
        raise
    return _copied(model), host.state_dict()


def _copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in model.state_dict().items()}


def hearing(event: str) -> object:
    """A plugin that writes down when it hears one event, and with which ids."""
    source = f"def {event}(self, ctx): self.heard.append(said('{event}', ctx))"
    found: dict[str, Any] = {"said": said}
    exec(source, found)
    return type("Hearing", (), {event: hookimpl(found[event])})


def said(event: str, ctx: Context) -> tuple[Any, ...]:
    losses = {name: value.item() for name, value in ctx.losses.items()}
    return event, ctx.epoch_id, ctx.step_id, ctx.global_step_id, ctx.updates, losses


class Recorder:
    """Hears every moment of the loop."""

    def __init__(self) -> None:
        self.heard: list[Any] = []


for _name, _event in EVENTS.items():
    if _event.kind == MOMENT and _name not in ("on_log", "on_checkpoint_saved"):
        setattr(Recorder, _name, vars(hearing(_name))[_name])


@plugin(stage="average")
class Mean:
    """The running mean of the weights, which a checkpoint has to keep."""

    def __init__(self) -> None:
        self.count, self.mean = 0, torch.zeros(1, 3)

    @hookimpl
    def on_optimizer_step_end(self, ctx: Context) -> None:
        self.count += 1
        self.mean += (ctx.model.weight.detach() - self.mean) / self.count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean = state["count"], state["mean"].clone()


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


# ---- bad input -----------------------------------------------------------------------------------


def test_two_hosts_on_one_bus_are_refused() -> None:
    bus = Bus([Mean()])
    HandWritten(bus)
    with pytest.raises(HatbusError, match="this bus has a host already"):
        HandWritten(bus)


def test_one_instance_with_a_state_in_two_hosts_is_refused() -> None:
    mean = Mean()
    run(HandWritten([mean]))
    with pytest.raises(HatbusError, match="'mean' keeps what it saw in a run of another"):
        run(HandWritten([mean]))


def test_a_plugin_that_is_bound_to_a_task_is_refused() -> None:
    @plugin(tasks="det")
    class OfDet:
        @hookimpl
        def on_batch_end(self) -> None:
            """Never."""

    with pytest.raises(HatbusError, match="'of_det' is bound to task 'det', which the run does"):
        HandWritten([OfDet()])


def test_a_plugin_that_needs_a_folder_is_given_the_hosts(tmp_path: Path) -> None:
    @plugin(stage="report")
    class Writes:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            if ctx.run_dir is None:
                raise HatbusError("writes: the run has no folder; give the run a run_dir")
            (ctx.run_dir / "here").touch()

    with pytest.raises(HatbusError, match="has no folder"):
        run(HandWritten([Writes()]))
    run(HandWritten([Writes()], run_dir=tmp_path))
    assert (tmp_path / "here").exists()


def test_a_host_that_is_half_through_a_run_is_refused() -> None:
    with pytest.raises(HatbusError, match="attached in the middle of a run"):
        HandWritten([Mean()]).begin_batch(None)


def test_a_plugin_that_writes_what_the_host_writes_is_refused() -> None:
    @plugin(writes="grad.clip")
    class Clips:
        @hookimpl
        def clip_gradients(self) -> bool:
            return True

    model, optimizer = parts()
    host = HandWritten([Clips()])
    with pytest.raises(HatbusError, match=r"'clips' and HandWritten both write 'grad\.clip'; do"):
        host.begin(model=model, optimizer=optimizer, writes={"grad.clip": "do so"})


class Fails:
    def __init__(self, event: str) -> None:
        self.event = event

    @hookimpl
    def on_step_begin(self) -> None:
        if self.event == "on_step_begin":
            raise ZeroDivisionError("mine")

    @hookimpl
    def on_batch_end(self) -> None:
        if self.event == "on_batch_end":
            raise ZeroDivisionError("mine")

    @hookimpl
    def clip_gradients(self) -> bool:
        if self.event == "clip_gradients":
            raise ZeroDivisionError("mine")
        return True


@pytest.mark.parametrize("event", ["on_step_begin", "on_batch_end", "clip_gradients"])
def test_a_plugin_that_fails_is_named_and_everybody_is_told_once(event: str) -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError) as caught:
        run(HandWritten({"bad": Fails(event), "recorder": recorder}))
    assert "in plugin 'bad'" in caught.value.__notes__[0]
    assert event in caught.value.__notes__[0]
    events = [name for name, *_ in recorder.heard]
    assert events[-1] == "on_loop_end"
    assert events.count("on_exception") == events.count("on_loop_end") == 1
    assert events.count("on_step_end") == 1


def test_a_host_runs_again_after_an_error_of_which_nobody_told_it() -> None:
    recorder = Recorder()
    host = HandWritten([recorder])
    model, optimizer = parts()
    host.begin(model=model, optimizer=optimizer)
    host.begin_batch(None)
    run(host, epochs=1)
    events = [name for name, *_ in recorder.heard]
    assert events.count("on_exception") == 1
    assert events.count("on_loop_begin") == events.count("on_loop_end") == 2


def test_a_state_without_its_plugin_is_refused_unless_it_is_dropped() -> None:
    state = run(HandWritten([Mean()]), stop_after=3)
    with pytest.raises(HatbusError, match=r"state of plugin 'mean'.*drop_plugin_state=\['mean'\]"):
        run(HandWritten([Recorder()]), state=state)
    recorder = Recorder()
    run(HandWritten([recorder], drop_plugin_state=["mean"]), state=state)
    assert recorder.heard[0][3] == 3


def test_a_plugin_that_the_checkpoint_does_not_know_begins_anew_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = run(HandWritten([Recorder()]), stop_after=3)
    mean = Mean()
    with caplog.at_level("WARNING", "hatbus"):
        run(HandWritten([mean]), state=state)
    assert mean.count == 2 * STEPS - 3
    assert "the checkpoint has no state of 'mean'" in caplog.text


def test_a_version_outside_the_range_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hatbus_hosts import versions

    monkeypatch.setattr(versions.metadata, "version", lambda _: "99.1")
    with caplog.at_level("WARNING", "hatbus"):
        versions.check_version("accelerate")
        versions.check_version("accelerate")
    (record,) = [one for one in caplog.records if "99.1" in one.message]
    assert "accelerate 99.1 is outside the range" in record.message
    assert versions.RANGES["accelerate"] in record.message
    monkeypatch.setattr(versions, "_told", set())


def test_the_extras_have_the_ranges_that_are_checked() -> None:
    import tomllib

    from hatbus_hosts.versions import RANGES

    file = Path(__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    assert {line for lines in extras.values() for line in lines} == {
        f"{name}{allowed}" for name, allowed in RANGES.items()
    }


def test_no_library_of_a_host_is_imported_before_its_host_is_asked_for() -> None:
    import subprocess
    import sys

    ask = (
        "import sys, hatbus_hosts; hatbus_hosts.Host; hatbus_hosts.AccelerateHost; "
        "hatbus_hosts.attach_ignite; print(*sorted(m for m in sys.modules if m in "
        "('lightning', 'pytorch_lightning', 'transformers', 'ignite', 'accelerate')))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
