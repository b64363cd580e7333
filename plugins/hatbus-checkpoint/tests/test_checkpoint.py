"""When Checkpoint saves, what it names, keeps and removes, and what it refuses at resume."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from runs import contents, trainer_of
from small import names, publishing, tiny

sys.path.pop(0)

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, PluginError, SaveError
from hatbus.insight import preview
from hatbus_checkpoint import Checkpoint, durable
from hatbus_checkpoint.folder import CheckpointFolder


def test_epochs_are_named_by_how_many_are_done(tmp_path: Path) -> None:
    tiny(tmp_path, save_hash=False).fit(num_epochs=2)
    assert names(tmp_path) == ["checkpoint-epoch-0001", "checkpoint-epoch-0002"]


def test_steps_are_named_by_how_many_are_done_and_the_end_is_saved_once(tmp_path: Path) -> None:
    tiny(tmp_path, save_hash=False, interval_by="step", save_interval=2).fit(num_steps=6)
    assert names(tmp_path) == ["checkpoint-step-2", "checkpoint-step-4", "checkpoint-step-6"]


def test_the_end_of_a_run_is_saved_unless_switched_off(tmp_path: Path) -> None:
    for name, wanted in (("on", True), ("off", False)):
        options = {"interval_by": "step", "save_interval": 4, "save_on_train_end": wanted}
        tiny(tmp_path / name, save_hash=False, **options).fit(num_steps=5)
    assert names(tmp_path / "on") == ["checkpoint-step-4", "checkpoint-step-5"]
    assert names(tmp_path / "off") == ["checkpoint-step-4"]


def test_the_hash_in_the_name_is_that_of_the_content_and_the_same_for_the_same_run(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        tiny(tmp_path / name).fit(num_epochs=1)
    (only,) = names(tmp_path / "a")
    assert names(tmp_path / "b") == [only]
    manifest = json.loads((tmp_path / "a" / only / "MANIFEST.json").read_text())
    assert only == f"checkpoint-epoch-0001-{manifest['content'][:8]}"


def test_the_pointers_name_last_and_best(tmp_path: Path) -> None:
    best = {"mode": "max", "monitor_metric_key": "val/acc"}
    options = {"interval_by": "step", "save_interval": 1, "save_hash": False}
    plugins = {"publishes": publishing([0.1, 0.7, 0.7, float("nan"), 0.2])}
    tiny(tmp_path, plugins, name_prefix="x-", **best, **options).fit(num_steps=5)
    pointers = {
        k: json.loads((tmp_path / f"x-checkpoint-{k}.json").read_text()) for k in ("last", "best")
    }
    assert pointers["last"]["path"] == "x-checkpoint-step-5"
    assert pointers["best"]["path"] == "x-checkpoint-step-2"


@pytest.mark.parametrize(("mode", "kept"), [("max", "step-2"), ("min", "step-1")])
def test_retention_keeps_newest_and_best(tmp_path: Path, mode: str, kept: str) -> None:
    best = {"mode": mode, "monitor_metric_key": "val/acc", "keep_last": 2, "keep_best": 1}
    options = {"interval_by": "step", "save_interval": 1, "save_hash": False}
    plugins = {"publishes": publishing([0.1, 0.7, 0.6, 0.5, 0.2, 0.3])}
    tiny(tmp_path, plugins, **best, **options).fit(num_steps=6)
    assert names(tmp_path) == [f"checkpoint-{kept}", "checkpoint-step-5", "checkpoint-step-6"]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_ranks_the_first_save_after_it_and_none_that_only_repeats_it(
    tmp_path: Path, mode: str
) -> None:
    better = {2: 0.10, 4: 0.11, 6: 0.3, 8: 0.4}

    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            if ctx.global_step_id + 1 in better:
                sign = 1 if mode == "min" else -1
                ctx.log({"val/loss": sign * better[ctx.global_step_id + 1]})

    best = {"mode": mode, "monitor_metric_key": "val/loss", "keep_last": 2, "keep_best": 2}
    options = {"interval_by": "step", "save_hash": False}
    plugins = {"publishes": plugin(stage="validate")(Publishes)()}
    tiny(tmp_path, plugins, **best, **options).fit(num_steps=8)
    assert names(tmp_path) == [f"checkpoint-step-{n}" for n in (2, 4, 7, 8)]


@pytest.mark.parametrize(
    ("wanted", "published", "said"),
    [
        ("val/acuracy", 3, 2),  # at the first save after a validation, and at the end
        ("val/accuracy", 3, 0),
        ("acuracy", 3, 1),
        ("val/accuracy", 9, 1),  # there was no validation
    ],
)
def test_a_metric_that_is_never_published_is_said_when_that_is_sure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wanted: str, published: int, said: int
) -> None:
    class Validates:
        @hookimpl
        def on_step_end(self, ctx: Any, global_step_id: int) -> None:
            ctx.log({"lr": 0.1})
            if global_step_id + 1 == published:
                ctx.log({"val/accuracy": 0.5})

    options = {"interval_by": "step", "mode": "max", "monitor_metric_key": wanted}
    tiny(tmp_path, {"validates": Validates()}, **options).fit(num_steps=5)
    lines = [r.getMessage() for r in caplog.records if "was published" in r.getMessage()]
    assert len(lines) == said
    hint = "; did you mean 'val/accuracy'?" if published == 3 else "; known: 'lr'"
    assert all(f"no metric {wanted!r} was published" in line and hint in line for line in lines)


def test_a_slip_in_the_task_of_a_metric_is_said_at_the_first_save_after_a_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[int] = []

    class Validates:
        @hookimpl
        def on_step_end(self, ctx: Any, global_step_id: int) -> None:
            ctx.log({"train/seg/loss": 0.1})
            if global_step_id + 1 >= 2:
                ctx.log({"val/seg/iou": 0.5, "val/depth/error": 0.5})

        @hookimpl
        def on_checkpoint_saved(self) -> None:
            said.append(caplog.text.count("no metric 'val/sge/iou' was published"))

    options = {"interval_by": "step", "mode": "max", "monitor_metric_key": "val/sge/iou"}
    tiny(tmp_path, {"validates": Validates()}, **options).fit(num_steps=4)
    assert said == [0, 1, 1, 1]
    assert "; did you mean 'val/seg/iou'?" in caplog.text


def test_a_metric_that_is_not_due_yet_is_no_slip_of_another_tasks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Validates:
        @hookimpl
        def on_step_end(self, ctx: Any, global_step_id: int) -> None:
            ctx.log({"val/det/loss": 0.5})
            if global_step_id == 3:
                ctx.log({"val/seg/loss": 0.5})

    options = {"interval_by": "step", "mode": "min", "monitor_metric_key": "val/seg/loss"}
    tiny(tmp_path, {"validates": Validates()}, **options).fit(num_steps=5)
    assert "was published" not in caplog.text


def test_a_metric_object_may_decide_on_best(tmp_path: Path) -> None:
    class Hats:
        values = iter([3.0, 1.0, 2.0])

        def get(self) -> tuple[list[str], list[float]]:
            return ["error"], [next(self.values)]

    options = {"interval_by": "step", "save_hash": False}
    tiny(tmp_path, mode="min", best_refer_metric=Hats(), **options).fit(num_steps=3)
    assert json.loads((tmp_path / "checkpoint-best.json").read_text())["path"].endswith("step-2")


def test_a_metric_of_several_values_cannot_decide_on_best(tmp_path: Path) -> None:
    class Collection:
        def __init__(self, **values: float) -> None:
            self.values = values

        def compute(self) -> dict[str, float]:
            return self.values

    options: dict[str, Any] = {"interval_by": "step", "mode": "min"}
    tiny(tmp_path, best_refer_metric=Collection(a=1.0), **options).fit(num_steps=1)
    with pytest.raises(PluginError, match="is a Collection of 'a', 'b'; accepted: one metric"):
        tiny(tmp_path, best_refer_metric=Collection(a=1.0, b=2.0), **options).fit(num_steps=1)


def test_a_metric_that_nobody_publishes_is_a_warning_with_the_known_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = {"publishes": publishing([0.1] * 3, "val/accuracy")}
    tiny(tmp_path, plugins, mode="max", monitor_metric_key="val/acuracy").fit(num_epochs=1)
    assert "did you mean 'val/accuracy'?" in caplog.text


def test_a_wall_clock_interval_saves_in_between(tmp_path: Path) -> None:
    options = {"save_interval": None, "save_seconds": 1e-6, "save_on_train_end": False}
    tiny(tmp_path, save_hash=False, **options).fit(num_steps=3)
    assert names(tmp_path) == ["checkpoint-step-1", "checkpoint-step-2", "checkpoint-step-3"]


def test_weights_alone_are_written_beside(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer = tiny(tmp_path, weights_only_export=True)
    trainer.fit(num_epochs=1)
    loaded = load_file(tmp_path / "weights-last.safetensors")
    assert loaded["weight"].equal(trainer.ctx.model.weight)


def test_every_save_is_told_once_it_is_durable(tmp_path: Path) -> None:
    told: list[str] = []

    class Hears:
        @hookimpl
        def on_checkpoint_saved(self, path: Path) -> None:
            assert (path / "MANIFEST.json").exists()
            assert threading.current_thread() is threading.main_thread()
            told.append(path.name)

    for asynchronous in (False, True):
        told.clear()
        path = tmp_path / str(asynchronous)
        options = {"interval_by": "step", "save_hash": False, "async_save": asynchronous}
        tiny(path, {"hears": Hears()}, **options).fit(num_steps=4)
        assert told == [f"checkpoint-step-{n}" for n in (1, 2, 3, 4)]


def test_a_veto_keeps_the_disk_as_it_was(tmp_path: Path) -> None:
    class Vetoes:
        @hookimpl
        def veto_checkpoint(self) -> str:
            return "not now"

    tiny(tmp_path, {"vetoes": Vetoes()}).fit(num_epochs=1)
    assert names(tmp_path) == []


def test_a_failed_run_saves_nothing_more_and_lets_go_of_the_folder(tmp_path: Path) -> None:
    class Fails:
        @hookimpl
        def on_step_end(self, global_step_id: int) -> None:
            if global_step_id == 4:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tiny(tmp_path, {"fails": Fails()}, save_hash=False).fit(num_epochs=3)
    assert names(tmp_path) == ["checkpoint-epoch-0001"]
    tiny(tmp_path, resume="auto", drop_plugin_state=[]).fit(num_epochs=3)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_told_with_bytes_and_leaves_the_old_ones(
    tmp_path: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Fills:
        @hookimpl
        def on_checkpoint_saved(self) -> None:
            monkeypatch.setattr(durable, "write_files", full)

    trainer = tiny(tmp_path, {"fills": Fills()}, save_hash=False, async_save=asynchronous)
    with pytest.raises(SaveError, match=r"needs \d+ bytes, [\d,]+ bytes are free"):
        trainer.fit(num_epochs=4)
    assert names(tmp_path) == ["checkpoint-epoch-0001"]
    assert not list(tmp_path.glob(".tmp*"))


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    class Removes:
        @hookimpl
        def on_checkpoint_saved(self) -> None:
            shutil.rmtree(tmp_path / "here")

    with pytest.raises(SaveError, match=r"cannot save: the folder '.*here' is gone .*put it back"):
        tiny(tmp_path / "here", {"removes": Removes()}).fit(num_epochs=3)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trainer = tiny(tmp_path / "file")
    with pytest.raises(SaveError, match="cannot be written"):
        trainer.fit(num_epochs=1)
    assert trainer.ctx.position.global_step == 0


def test_a_weight_view_is_never_saved(tmp_path: Path) -> None:
    from contextlib import nullcontext

    class Saves:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            if "ema" not in ctx.weights.names:
                ctx.weights.add("ema", nullcontext)
            with ctx.weights.showing("ema"):
                ctx.save("wrong moment")

    with pytest.raises(SaveError, match="while the model shows 'ema' weights"):
        tiny(tmp_path, {"saves": Saves()}).fit(num_epochs=1)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    class Starts:
        @hookimpl
        def on_step_begin(self) -> None:
            tiny(tmp_path).fit(num_steps=1)

    with pytest.raises(Exception, match="another run saves to"):
        tiny(tmp_path, {"starts": Starts()}).fit(num_epochs=1)


def test_a_checkpoint_holds_what_it_says(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_interval=None)
    trainer.fit(num_steps=4)
    (entry,) = CheckpointFolder(tmp_path).entries()
    assert {"model.safetensors", "model.json", "optim.json", "progress.json", "rank-0.json"} < set(
        contents(entry.path)
    )
    manifest = entry.manifest
    assert [p["name"] for p in manifest["plugins"]] == [
        "schedule",
        "average",
        "metric",
        "checkpoint",
    ]
    assert manifest["progress"] == {"epoch": 0, "step": 4, "global_step": 4, "updates": 4}
    assert manifest["metrics"]["sum"] == pytest.approx(float(trainer.ctx.latest["sum"]))
    assert manifest["settings"]["optimizer"] == "AdamW"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval_by": "batch"}, "interval_by is 'batch'; accepted: 'epoch', 'step'"),
        ({"save_interval": 0}, "save_interval is 0; accepted: a whole number of at least 1"),
        ({"keep_last": 1}, "keep_last is 1; accepted: a whole number of at least 2, so that"),
        ({"keep_best": 1}, "keep_best needs mode"),
        ({"mode": "best", "monitor_metric_key": "a"}, "mode is 'best'; accepted: 'min', 'max'"),
        ({"monitor_metric_key": "a"}, "mode .* is missing"),
        ({"mode": "max", "best_refer_metric": {"type": "x"}}, "unknown type 'x'"),
        ({"mode": "max", "best_refer_metric": 3}, "best_refer_metric is a int"),
        ({"save_seconds": 0}, "save_seconds is 0; accepted: a number above 0"),
        ({"name_prefix": "../x"}, "name_prefix is '../x'; accepted"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((JobError, PluginError), match=message):
        Checkpoint(str(tmp_path), **options)


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hatbus")


@pytest.mark.parametrize(
    "options",
    [
        {"save_interval": 2, "interval_by": "step"},
        {"save_interval": 1},
        {"save_interval": 4, "interval_by": "step", "save_on_train_end": False},
        {"save_interval": None},
    ],
)
def test_the_preview_marks_the_steps_of_the_real_saves(
    options: dict[str, Any], tmp_path: Path
) -> None:
    marked = preview(tiny(tmp_path, **options), num_epochs=3).marks
    saves: list[int] = []

    class Notes:
        @hookimpl
        def on_checkpoint_saved(self, ctx: Any) -> None:
            saves.append(ctx.global_step_id)

    tiny(tmp_path, {"notes": Notes()}, **options).fit(num_epochs=3)
    assert marked == {"checkpoint": saves}
    assert saves
