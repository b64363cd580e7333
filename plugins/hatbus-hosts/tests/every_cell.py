"""What each host delivers, cell by cell, with the libraries themselves: `tox -e hosts`.

``docs/hosts.json`` holds what was measured. ``HATBUS_HOSTS_REFRESH=1`` writes it anew; then
``python docs/refresh.py`` writes the table of ``docs/hosts.md``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import host_loops as loops
import pytest
import torch

from hatbus import HatbusError, hookimpl
from hatbus.events import DECISION, EVENTS, MOMENT
from hatbus_hosts import rows
from hatbus_hosts.capabilities import TABLES
from hatbus_hosts.versions import TESTED

RESULTS = Path(__file__).parents[3] / "docs/hosts.json"
EPOCHS = 2
STEPS = loops.STEPS
_measured: dict[str, dict[str, str]] = {}


# ---- probes: a plugin for each row, that counts what it heard -----------------------------------

BODIES: dict[str, Callable[[Any], Any]] = {
    "run_batch": lambda ctx: {"loss": (ctx.wrapped_model(ctx.batch)["loss"] * 1.0)},
    "run_step": lambda ctx: True,
    "forward": lambda ctx: ctx.wrapped_model(ctx.batch),
    "compute_loss": lambda ctx: {"loss": ctx.model_outs["loss"]},
    "backward": lambda ctx: ctx.loss.backward() or True,
    "clip_gradients": lambda ctx: True,
    "optimizer_step": lambda ctx: ctx.optimizer.step() or True,
    "validate": lambda ctx: {"found": 1.0},
    "save_checkpoint": lambda ctx: Path("here"),
    "load_checkpoint": lambda ctx: True,
    "export_model": lambda ctx: Path("there"),
}
"""What a plugin that replaces a span does."""


def implementing(event: str, body: Callable[..., Any], **options: Any) -> Any:
    """A marked method."""

    def method(self: Any, ctx: Any) -> Any:
        return body(self, ctx)

    method.__name__ = event
    return hookimpl(**options)(method)


def wrapping(event: str) -> Any:
    """A marked wrapper that counts when it is left."""

    def method(self: Any, ctx: Any) -> Iterator[None]:
        result = yield
        self.heard += 1
        return result

    method.__name__ = event
    return hookimpl(wrapper=True)(method)


def count(self: Any, _: Any) -> None:
    self.heard += 1


def counting(result: Callable[[Any], Any]) -> Callable[..., Any]:
    def body(self: Any, ctx: Any) -> Any:
        self.heard += 1
        return result(ctx)

    return body


def at_step(step: int, do: Callable[[Any], Any]) -> Any:
    """A method that does something once, at the end of a step."""

    def body(_: Any, ctx: Any) -> None:
        if ctx.global_step_id == step:
            do(ctx)

    return implementing("on_step_end", body)


class Base:
    def __init__(self) -> None:
        self.heard = 0


def probe(row: str) -> Any:
    """The plugin of a row."""
    name, _, kind = row.partition(" ")
    parts: dict[str, Any] = {}
    if name == "request":
        parts = asking(kind)
    elif row == "state saved":
        parts = {"on_step_end": implementing("on_step_end", count), **KEEPS}
    elif kind == "wrapped":
        parts[name] = wrapping(name)
    else:
        parts[name] = implementing(name, answering(name))
    causes: dict[str, Callable[[Any], Any]] = {
        "export_model": lambda ctx: ctx.emit.export_model(ctx, "try"),
        "on_log": lambda ctx: ctx.log({"it": 1.0}),
        "on_exception": fail,
    }
    if row == "validate replaced":
        causes[name] = lambda ctx: ctx.emit.validate(ctx, "try")
    if name in causes:
        parts["on_step_end"] = at_step(2, causes[name])
    return type("Probe", (Base,), parts)()


def answering(event: str) -> Callable[..., Any]:
    """What an implementation does, and counts."""
    if EVENTS[event].kind == MOMENT:
        return count
    if EVENTS[event].kind == DECISION:
        return counting(lambda ctx: "because" if ctx.global_step_id == 3 else None)
    return counting(BODIES.get(event, lambda ctx: 1))


def fail(ctx: Any) -> None:
    raise ZeroDivisionError("on purpose")


KEEPS = {
    "state_dict": lambda self: {"heard": self.heard},
    "load_state_dict": lambda self, state: setattr(self, "heard", state["heard"]),
}


def asking(wish: str) -> dict[str, Any]:
    """Asks at the end of step 2; what comes of it is heard."""
    asks: dict[str, Callable[[Any], Any]] = {
        "stop run": lambda ctx: ctx.control.stop("run", "try"),
        "stop epoch": lambda ctx: ctx.control.stop("epoch", "try"),
        "save": lambda ctx: ctx.control.save("try"),
        "validate": lambda ctx: ctx.control.validate("try"),
    }
    parts: dict[str, Any] = {"on_step_end": at_step(2, asks[wish]), "requests": (wish,)}
    if wish == "save":
        parts["save_checkpoint"] = wrapping("save_checkpoint")
    elif wish == "validate":
        parts["on_validation_end"] = implementing("on_validation_end", count)
    else:
        parts["on_step_begin"] = implementing("on_step_begin", count)
    return parts


# ---- runs in which everything happens ------------------------------------------------------------


def run_transformers(plugins: Mapping[str, Any], folder: Path, **_: Any) -> Any:
    arguments = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps"}
    arguments |= {"save_steps": 5, "save_total_limit": 3}
    quiet = {"eval_strategy": "no", "save_strategy": "no"} if asks(plugins) else {}
    return loops.in_transformers(
        loops.new_model(),
        plugins,
        EPOCHS,
        folder=folder,
        arguments={**arguments, **quiet},
        evaluate=True,
    )


def run_lightning(plugins: Mapping[str, Any], folder: Path, **_: Any) -> Any:
    from pytorch_lightning.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(folder, every_n_train_steps=5, save_top_k=-1)
    return loops.in_lightning(
        loops.new_model(),
        plugins,
        EPOCHS,
        trainer={"enable_checkpointing": True, "default_root_dir": folder},
        callbacks=[] if asks(plugins) else [saver],
        evaluate=not asks(plugins),
        validate=validating(plugins),
    )


def run_ignite(plugins: Mapping[str, Any], folder: Path, **_: Any) -> Any:
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver

    evaluator = Engine(lambda engine, batch: 0.0)

    def prepare(engine: Any, host: Any, optimizer: Any) -> None:
        saver = DiskSaver(str(folder), create_dir=True)
        checkpoint = Checkpoint({"hatbus": host, "engine": engine}, saver)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=5), checkpoint)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))

    return loops.in_ignite(
        loops.new_model(),
        plugins,
        EPOCHS,
        prepare=None if asks(plugins) else prepare,
        evaluator=evaluator,
        save=saving(plugins),
        validate=lambda _: bool(evaluator.run([0])),
    )


def run_accelerate(plugins: Mapping[str, Any], folder: Path, **_: Any) -> Any:
    def each(host: Any) -> None:
        if host.ctx.global_step_id == 4 and not asks(plugins):
            host.save(folder / "state")
            with host.validation() as validation:
                validation.publish({"val/loss": 1.0})

    return loops.in_accelerate(
        loops.new_model(),
        plugins,
        EPOCHS,
        each=each,
        checkpoint_dir=folder / "asked",
        validate=validating(plugins),
    )


def run_plain(plugins: Mapping[str, Any], folder: Path, **_: Any) -> Any:
    def each(ctx: Any) -> None:
        if ctx.global_step_id == 4 and not asks(plugins):
            ctx.emit.validate(ctx, "try")
            ctx.save("try")
            ctx.emit.load_checkpoint(ctx, folder)
            if ctx.emit.on_checkpoint_saved is not None:
                ctx.emit.on_checkpoint_saved(ctx, folder)

    return loops.in_plain(loops.new_model(), plugins, EPOCHS, each=each)


def validating(plugins: Mapping[str, Any]) -> Callable[[str], None]:
    """A loop's own way to validate, which the probe hears of by its count."""

    def validate(reason: str) -> None:
        plugins["probe"].heard += reason == "try"

    return validate


def saving(plugins: Mapping[str, Any]) -> Callable[[str], None]:
    """A loop's own way to save."""
    return validating(plugins)


def asks(plugins: Mapping[str, Any]) -> bool:
    """Whether what happens is to come of a request only."""
    return bool(getattr(plugins["probe"], "requests", ()))


RUNS = {
    "transformers": run_transformers,
    "lightning": run_lightning,
    "ignite": run_ignite,
    "accelerate": run_accelerate,
    "plain": run_plain,
}


# ---- the cells -----------------------------------------------------------------------------------


def verdict(host: str, row: str) -> str:
    """What the host says of itself."""
    said = TABLES[host][row]
    return f"partly: {said}" if isinstance(said, str) else ("yes" if said else "no")


@pytest.fixture(scope="session", autouse=True)
def _results() -> Iterator[None]:
    yield
    if os.environ.get("HATBUS_HOSTS_REFRESH") == "1" and _measured:
        versions = {name: _version(name) for name in TESTED if _version(name)}
        known = json.loads(RESULTS.read_text("utf-8"))["cells"] if RESULTS.exists() else {}
        cells = {
            row: {
                host: _measured.get(host, {}).get(row) or known[row][host]  # of an earlier run
                for host in RUNS
            }
            for row in rows()
        }
        found = {"versions": {"torch": torch.__version__.split("+")[0], **versions}, "cells": cells}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("host", RUNS)
def test_the_host_delivers_what_it_says(host: str, row: str, tmp_path: Path) -> None:
    said = verdict(host, row)
    plugin = probe(row)
    if said == "no" and host == "plain":  # nobody is there to refuse it
        assert_silent(plugin, tmp_path)
    elif said == "no":
        with pytest.raises(HatbusError) as caught:
            RUNS[host]({"probe": plugin}, tmp_path)
        event = row.removeprefix("request ").removesuffix(" wrapped").removesuffix(" replaced")
        assert "plugin 'probe' needs" in str(caught.value)
        assert f"'{event}'" in str(caught.value)
    elif row == "state saved":
        assert_resumes(host, tmp_path)
    else:
        assert_heard(host, row, plugin, tmp_path)
    _measured.setdefault(host, {})[row] = said
    if os.environ.get("HATBUS_HOSTS_REFRESH") != "1":
        assert json.loads(RESULTS.read_text("utf-8"))["cells"][row][host] == said


def assert_heard(host: str, row: str, plugin: Any, folder: Path) -> None:
    if row == "on_exception":
        with pytest.raises(ZeroDivisionError):
            RUNS[host]({"probe": plugin}, folder)
        assert plugin.heard == 1
        return
    found = RUNS[host]({"probe": plugin}, folder)
    ctx = found if host == "plain" else found.ctx
    expected = {
        "request stop run": range(3, 4),
        "request stop epoch": range(3 + STEPS, 4 + STEPS),
        "skip_update": range(EPOCHS * STEPS, EPOCHS * STEPS + 1),
    }
    assert plugin.heard in expected.get(row, range(1, 200)), plugin.heard
    if row == "skip_update":
        assert ctx.updates == EPOCHS * STEPS - 1
    event = EVENTS.get(row.partition(" ")[0])
    if event is not None and "losses" in event.arguments and "skip" not in row:
        assert plugin.heard == EPOCHS * STEPS  # each step, each batch


def assert_silent(plugin: Any, folder: Path) -> None:
    run_plain({"probe": plugin}, folder)
    assert plugin.heard == 0


def assert_resumes(host: str, folder: Path) -> None:
    """A second run goes on with what the first has saved in the host's own way."""
    from host_resume import resume, start

    first, second = probe("state saved"), probe("state saved")
    start(host, {"probe": first}, folder)
    resume(host, {"probe": second}, folder)
    assert (first.heard, second.heard) == (STEPS, 2 * STEPS)
