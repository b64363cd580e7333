"""What cannot be used with a host, and what fails in one: who it was, and what is accepted."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from host_by_hand import STEP_MOMENTS, STEPS, HandWritten, Mean, Recorder, Surrounds, parts, run

from hatbus import Bus, Context, HatbusError, hookimpl, plugin


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

    told = Recorder()
    with pytest.raises(HatbusError, match="has no folder"):
        run(HandWritten([told, Writes()]))
    assert [name for name, *_ in told.heard] == ["on_loop_begin", "on_exception", "on_loop_end"]
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
    watching = len(torch.nn.modules.module._global_module_registration_hooks)
    with pytest.raises(ZeroDivisionError) as caught:
        run(HandWritten({"bad": Fails(event), "recorder": recorder}))
    assert "in plugin 'bad'" in caught.value.__notes__[0]
    assert event in caught.value.__notes__[0]
    events = [name for name, *_ in recorder.heard]
    assert events[-1] == "on_loop_end"
    assert events.count("on_exception") == events.count("on_loop_end") == 1
    assert events.count("on_step_end") == 1
    assert len(torch.nn.modules.module._global_module_registration_hooks) == watching


def failing(event: str) -> object:
    """A plugin that fails at one event of the second step."""

    def fail(self: object, global_step_id: int) -> None:
        if global_step_id == 1:
            raise ZeroDivisionError("mine")

    return type("Failing", (), {event: hookimpl(fail)})()


@pytest.mark.parametrize("event", ["", *STEP_MOMENTS])
def test_the_same_is_told_whether_or_not_a_plugin_surrounds_the_spans(event: str) -> None:
    told: list[Any] = []
    for around in ([], [Surrounds()]):
        recorder = Recorder()
        bad = [failing(event)] if event else []
        with pytest.raises(ZeroDivisionError) if event else nullcontext():
            run(HandWritten([*bad, recorder, *around]))
        told.append(recorder.heard)
    assert told[0] == told[1]
    names = [name for name, *_ in told[0]]
    assert all(names.count(f"on_{span}_end") >= 1 for span in ("step", "batch", "epoch", "loop"))
    assert names.count("on_exception") == bool(event)


def test_a_span_whose_begin_failed_is_ended_at_once() -> None:
    recorder = Recorder()
    host = HandWritten([failing("on_step_begin"), recorder])
    model, optimizer = parts()
    host.begin(model=model, optimizer=optimizer)
    host.begin_batch(None)
    host.end_step()
    with pytest.raises(ZeroDivisionError):
        host.begin_batch(None)
    assert [name for name, *_ in recorder.heard][-1] == "on_step_end"
    host.end()


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
