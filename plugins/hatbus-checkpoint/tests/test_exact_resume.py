"""A resumed run ends with the same bytes, whatever it is made of; and each saved item is needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from configurations import Crash, Crashed, name_of, pairwise, trial
from runs import contents, last, run, trainer_of

sys.path.pop(0)

from hatbus import rng
from hatbus_checkpoint.restore import ClassSource

SAMPLE = pairwise(60)


@pytest.mark.parametrize("one", SAMPLE, ids=name_of)
def test_a_crashed_run_ends_with_the_same_bytes(tmp_path: Path, one: tuple[Any, ...]) -> None:
    trial(tmp_path, one)


def test_the_sample_is_of_sixty_configurations_and_no_two_are_equal() -> None:
    assert len(set(SAMPLE)) == len(SAMPLE) >= 60


@pytest.mark.parametrize("kind", ["own", "foreign", "generator", "stateful"])
def test_a_run_may_be_resumed_again_and_again(tmp_path: Path, kind: str) -> None:
    run(tmp_path / "whole", 20, kind=kind, save_interval=None)
    for steps in (3, 10, 12, 20):
        run(tmp_path / "broken", steps, kind=kind, save_interval=None)
    assert last(tmp_path / "broken") == last(tmp_path / "whole")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_saving_in_the_background_or_not_does_not_change_the_run(
    tmp_path: Path, asynchronous: bool
) -> None:
    run(tmp_path / "often", 9, save_interval=1, async_save=asynchronous)
    run(tmp_path / "once", 9, save_interval=None)
    often, once = (without_metrics(last(tmp_path / name)) for name in ("often", "once"))
    assert often == once  # the second is saved after the epoch has published its mean loss


def without_metrics(found: dict[str, bytes]) -> dict[str, Any]:
    manifest = json.loads(found["MANIFEST.json"])
    return {**found, "MANIFEST.json": {k: v for k, v in manifest.items() if k != "metrics"}}


def _without_state(name: str) -> Callable[[ClassSource], None]:
    def drop(reading: ClassSource) -> None:
        del reading.states[name]

    return drop


def _fresh_rng(name: str) -> Callable[[ClassSource], None]:
    def drop(reading: ClassSource) -> None:
        reading.rank["rng"][name] = rng.capture()[name]

    return drop


def _feed(reading: ClassSource) -> dict[str, Any]:
    feed: dict[str, Any] = reading.rank["data"][""]
    return feed


def _set(get: Callable[[ClassSource], Any], key: Any, value: Any) -> Callable[[ClassSource], None]:
    def drop(reading: ClassSource) -> None:
        get(reading)[key] = value

    return drop


def _without_position(place: int) -> Callable[[ClassSource], None]:
    def drop(reading: ClassSource) -> None:
        position = list(reading.progress["position"])
        position[place] = 0
        reading.progress["position"] = tuple(position)

    return drop


def _weights(*words: str) -> Callable[[ClassSource], None]:
    """Leaves every matching tensor of the model as it was built."""

    def drop(reading: ClassSource) -> None:
        found = [n for n in reading.model if any(w in n for w in words)]
        assert found
        for name in found:
            del reading.model[name]

    return drop


def _moments(key: str) -> Callable[[ClassSource], None]:
    def drop(reading: ClassSource) -> None:
        for state in reading.optimizer["state"].values():
            state[key] = torch.zeros_like(state[key])

    return drop


def _group(key: str, value: Any) -> Callable[[ClassSource], None]:
    def drop(reading: ClassSource) -> None:
        assert reading.optimizer["groups"][0][key] != value
        reading.optimizer["groups"][0][key] = value

    return drop


ITEMS: dict[str, tuple[dict[str, Any], Callable[[ClassSource], None]]] = {
    "parameters": ({}, _weights("weight", "bias")),
    "one bias": ({}, _weights("head.bias")),
    "buffers": ({}, _weights("running_mean", "running_var")),
    "integer buffer": ({}, _weights("num_batches_tracked")),
    "first moments": ({}, _moments("exp_avg")),
    "second moments": ({}, _moments("exp_avg_sq")),
    "optimizer's step count": ({}, _moments("step")),
    "weight decay": ({}, _group("weight_decay", 0.0)),
    "learning rate's memory": ({}, _without_state("schedule")),
    "average": ({}, _without_state("average")),
    "average's count": ({}, _set(lambda r: r.states["average"], "count", 0)),
    "metric's sum": ({}, _set(lambda r: r.states["metric"], "sum", torch.zeros(()))),
    "metric's epochs": ({}, _set(lambda r: r.states["metric"], "epochs", 0)),
    "loss scale": ({"precision": "fp16"}, lambda r: r.progress.update(scaler=None)),
    "python's random state": ({}, _fresh_rng("python")),
    "numpy's random state": ({}, _fresh_rng("numpy")),
    "torch's random state": ({}, _fresh_rng("torch")),
    "epoch": ({}, _without_position(0)),
    "step in the epoch": ({}, _without_position(1)),
    "step in the run": ({}, _without_position(2)),
    "updates": ({}, lambda r: r.progress.update(updates=0)),
    "batches taken": ({}, _set(_feed, "taken", 0)),
    "pass over the data": ({"tasks": "one"}, lambda r: r.rank["data"]["b"].update({"pass": 3})),
    "random state at the pass's begin": (
        {"kind": "foreign"},
        lambda r: _feed(r)["began"].update(rng=rng.capture()),
    ),
    "loader's generator": (
        {"kind": "generator"},
        lambda r: _feed(r)["began"].update(generators=[torch.Generator().get_state()]),
    ),
    "loader's own state": (
        {"kind": "stateful"},
        lambda r: _feed(r).update(loader={"at": 0, "passes": 0}),
    ),
    "that a pass was open": (
        {"kind": "foreign", "tasks": "one"},
        lambda r: r.rank["data"]["a"].update(open=False),
    ),
    "metric's history": ({}, _set(lambda r: r.states["metric"], "history", [])),
    "best value": (
        {"mode": "max", "monitor_metric_key": "sum"},
        _set(lambda r: r.states["checkpoint"], "best", -1.0),
    ),
}
"""What is saved, and how to resume without it."""


@pytest.fixture(scope="module")
def broken(memory: Path) -> Callable[[dict[str, Any]], Any]:
    """A crashed run's folder and the end of the same run without a crash, for some options."""
    made: dict[str, tuple[Path, Any]] = {}

    def make(options: dict[str, Any]) -> tuple[Path, Any]:
        key = repr(sorted(options.items()))
        if key not in made:
            path = memory / f"broken-{len(made)}"
            with pytest.raises(Crashed):
                run(path / "broken", 15, {"crash": Crash(10)}, save_interval=8, **options)
            whole = run(path / "whole", 15, {"crash": Crash(-1)}, save_interval=8, **options)
            made[key] = path, outcome(whole)
        return made[key]

    return make


def outcome(trainer: Any) -> Any:
    """Everything about the end of a run that a resumed one must have too."""
    checkpoint = trainer.bus.members["checkpoint"].plugin
    return contents(checkpoint._path), trainer.ctx.position.global_step


@pytest.mark.parametrize("item", ["nothing", *ITEMS])
def test_each_saved_item_is_needed(
    item: str, broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, drop = ITEMS.get(item, ({}, lambda _: None))
    path, expected = broken(options)
    read = ClassSource.__init__

    def read_less(self: ClassSource, *arguments: Any) -> None:
        read(self, *arguments)
        drop(self)

    monkeypatch.setattr(ClassSource, "__init__", read_less)
    trainer = trainer_of(
        tmp_path,
        {"crash": Crash(-1)},
        save_interval=None,
        **{**options, "resume": str(path / "broken")},
    )
    trainer.fit(num_steps=15)
    assert (outcome(trainer) == expected) is (item == "nothing")


def test_the_ids_of_the_last_step_come_back_when_nothing_is_left_to_do(tmp_path: Path) -> None:
    first = run(tmp_path, 8).ctx
    again = run(tmp_path, 8).ctx
    ids = [(c.epoch_id, c.step_id, c.global_step_id) for c in (first, again)]
    assert ids[0] == ids[1] == (1, 1, 7)


def test_an_observer_that_draws_at_the_start_does_not_change_a_resumed_run(tmp_path: Path) -> None:
    from hatbus import hookimpl, plugin

    @plugin(stage="report")
    class Draws:
        @hookimpl
        def on_loop_begin(self) -> None:
            torch.rand(3)

    run(tmp_path / "whole", 15, save_interval=None)
    for steps in (6, 15):
        run(tmp_path / "broken", steps, {"draws": Draws()} if steps == 15 else None)
    assert (
        last(tmp_path / "broken")["model.safetensors"]
        == (last(tmp_path / "whole")["model.safetensors"])
    )


def test_skipped_steps_in_a_row_are_counted_over_a_resume(tmp_path: Path) -> None:
    from hatbus import hookimpl
    from hatbus.errors import NonFiniteError

    class Breaks:
        @hookimpl(wrapper=True)
        def compute_loss(self, global_step_id: int) -> Any:
            losses = yield
            return (
                {n: v * float("nan") for n, v in losses.items()} if global_step_id > 2 else losses
            )

    def steps_until_it_gives_up(path: Path, stops: list[int]) -> int:
        for steps in stops:
            run(path, steps, {"breaks": Breaks()}, save_interval=None, nan="skip_step")
        trainer = trainer_of(path, {"breaks": Breaks()}, save_interval=None, nan="skip_step")
        with pytest.raises(NonFiniteError, match="after 10 skipped steps in a row"):
            trainer.fit(num_steps=40)
        return int(trainer.ctx.global_step_id)

    assert steps_until_it_gives_up(tmp_path / "whole", []) == 13
    assert steps_until_it_gives_up(tmp_path / "broken", [5, 9]) == 13
