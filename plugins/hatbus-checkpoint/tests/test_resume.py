"""What a run is resumed from, what it then has, and what is refused with the way out."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from small import DATA, counting, names, publishing, tiny

sys.path.pop(0)

from hatbus import Trainer, hookimpl, plugin
from hatbus.errors import CheckpointError
from hatbus_checkpoint import Checkpoint
from hatbus_checkpoint.folder import CheckpointFolder


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hatbus")


def test_a_run_that_is_done_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny(tmp_path).fit(num_epochs=1)
    again = tiny(tmp_path, resume="auto")
    again.fit(num_epochs=1)
    assert again.ctx.updates == 3
    assert "nothing is left to do; give the run more num_epochs" in caplog.text


def test_auto_starts_anew_in_an_empty_folder_and_goes_on_in_a_full_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny(tmp_path, resume="auto").fit(num_epochs=1)
    again = tiny(tmp_path, resume="auto")
    again.fit(num_epochs=3)
    assert again.ctx.updates == 9
    assert "planned for 1 epochs and now is for 3 epochs" in caplog.text
    manifests = [e.manifest for e in CheckpointFolder(tmp_path).entries()]
    assert len({m["run"] for m in manifests}) == 1
    assert manifests[0]["parent"].startswith("checkpoint-epoch-0002")


def test_the_jobs_resume_comes_before_the_option(tmp_path: Path) -> None:
    tiny(tmp_path / "a").fit(num_epochs=1)
    trainer = tiny(tmp_path / "b", resume="auto")
    trainer.ctx.storage["resume"] = str(tmp_path / "a")
    trainer.fit(num_epochs=1)
    assert trainer.ctx.updates == 3


def test_without_resume_a_run_starts_anew_and_leaves_the_others_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"keep_last": 2, "interval_by": "step", "save_hash": False}
    tiny(tmp_path, **options).fit(num_steps=3)
    first = names(tmp_path)
    second = tiny(tmp_path, **options)
    second.fit(num_steps=3)
    assert second.ctx.updates == 3
    assert set(first) < set(names(tmp_path))
    assert "checkpoints of earlier runs, which stay" in caplog.text
    found = CheckpointFolder(tmp_path).latest()
    assert found is not None
    assert found.path.name == "checkpoint-step-3.2"


def test_a_second_fit_goes_on_and_does_not_resume_again(tmp_path: Path) -> None:
    trainer = tiny(tmp_path, resume="auto", save_on_train_end=False)
    trainer.fit(num_steps=4)
    trainer.fit(num_steps=5)
    assert trainer.ctx.updates == 5


def test_a_damaged_checkpoint_takes_no_place_from_the_good_ones(tmp_path: Path) -> None:
    best = {"mode": "max", "monitor_metric_key": "val/acc", "keep_last": 2, "keep_best": 2}
    options = {"interval_by": "step", "save_hash": False, "resume": "auto", **best}
    values = [0.1, 0.7, 0.9, 0.2, 0.3, 0.4, 0.5]

    def run(steps: int) -> list[str]:
        tiny(tmp_path, {"publishes": publishing(values)}, **options).fit(num_steps=steps)
        return [name.removeprefix("checkpoint-step-") for name in names(tmp_path)]

    assert run(3) == ["2", "3"]
    weights = tmp_path / "checkpoint-step-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert run(3) == ["2", "3", "3.2"]
    assert run(7) == ["2", "3.2", "6", "7"], "what was saved in its place counts, not the damaged"


@pytest.mark.parametrize(
    ("change", "key", "shown"),
    [
        ({"seed": 1}, "seed", "0 -> 1"),
        ({"lr": 0.5}, "optimizer.lr", "0.01 -> 0.5"),
        ({"accumulate": 2}, "accumulate", "1 -> 2"),
        ({"data": DATA[:2]}, "data.batches", "3 -> 2"),
    ],
)
def test_another_run_is_refused_with_the_difference_and_the_way_out(
    tmp_path: Path, change: dict[str, Any], key: str, shown: str
) -> None:
    tiny(tmp_path).fit(num_epochs=1)
    with pytest.raises(CheckpointError, match=rf"{key}: {shown}; .* --override {key}"):
        tiny(tmp_path, resume="auto", **change).fit(num_epochs=2)
    tiny(tmp_path, resume="auto", override=[key], **change).fit(num_epochs=2)


def test_an_overridden_learning_rate_is_the_runs(tmp_path: Path) -> None:
    tiny(tmp_path).fit(num_epochs=1)
    trainer = tiny(tmp_path, resume="auto", lr=0.5, override=["optimizer.lr"])
    trainer.fit(num_epochs=2)
    assert trainer.ctx.optimizer.param_groups[0]["lr"] == 0.5


def grouped(path: Path, rates: tuple[float, float], plugins: Any = None, **options: Any) -> Trainer:
    """Two param groups, the first by the optimizer's default."""
    trainer = tiny(path, plugins, **options)
    weight, bias = trainer.ctx.model.parameters()
    groups = [{"params": [weight], "name": "w"}, {"params": [bias], "name": "b", "lr": rates[1]}]
    trainer.ctx.optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=0.9)
    return trainer


def test_a_changed_option_of_one_param_group_is_refused_or_taken(tmp_path: Path) -> None:
    grouped(tmp_path, (0.1, 0.3)).fit(num_epochs=1)
    grouped(tmp_path, (0.1, 0.3), resume="auto").fit(num_epochs=2)
    with pytest.raises(CheckpointError, match=r"optimizer.lr: \{'b': 0.3\} -> \{'b': 0.7\}; "):
        grouped(tmp_path, (0.1, 0.7), resume="auto").fit(num_epochs=3)
    again = grouped(tmp_path, (0.1, 0.7), resume="auto", override=["optimizer.lr"])
    again.fit(num_epochs=3)
    assert [g["lr"] for g in again.ctx.optimizer.param_groups] == [0.1, 0.7]
    grouped(tmp_path, (0.1, 0.7), resume="auto").fit(num_epochs=4)


def test_what_a_schedule_did_to_the_groups_is_no_change_of_the_run(tmp_path: Path) -> None:
    @plugin(stage="schedule")
    class Shrinks:
        @hookimpl
        def on_step_begin(self, optimizer: torch.optim.Optimizer) -> None:
            for group in optimizer.param_groups:
                group["lr"] *= 0.9

    schedule = {"shrinks": Shrinks()}
    grouped(tmp_path, (0.1, 0.3), schedule).fit(num_epochs=1)
    again = grouped(tmp_path, (0.1, 0.3), schedule, resume="auto")
    again.fit(num_epochs=2)
    assert again.ctx.updates == 6
    with pytest.raises(CheckpointError, match=r"optimizer.lr: \{'b': 0.3\} -> \{'b': 0.7\}; "):
        grouped(tmp_path, (0.1, 0.7), schedule, resume="auto").fit(num_epochs=3)


def test_a_missing_plugin_is_an_error_and_an_added_one_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny(tmp_path / "a", {"counts": counting(1)}).fit(num_epochs=1)
    with pytest.raises(CheckpointError, match=r"'counts'.*--drop-plugin-state counts"):
        tiny(tmp_path / "a", resume="auto").fit(num_epochs=2)
    tiny(tmp_path / "a", resume="auto", drop_plugin_state=["counts"]).fit(num_epochs=2)
    tiny(tmp_path / "b").fit(num_epochs=1)
    tiny(tmp_path / "b", {"counts": counting(1)}, resume="auto").fit(num_epochs=2)
    assert "plugin 'counts' was not there and starts fresh" in caplog.text


def test_a_state_of_another_version_is_migrated_or_refused(tmp_path: Path) -> None:
    tiny(tmp_path, {"counts": counting(1)}).fit(num_epochs=1)
    with pytest.raises(CheckpointError, match="version 1, this one reads version 2"):
        tiny(tmp_path, {"counts": counting(2)}, resume="auto").fit(num_epochs=2)
    newer: Any = counting(2, lambda state, version: {"count": state["count"] + 100 * version})
    tiny(tmp_path, {"counts": newer}, resume="auto").fit(num_epochs=2)
    assert newer.count == 106


def test_another_model_is_refused_with_a_table_and_untouched(tmp_path: Path) -> None:
    tiny(tmp_path).fit(num_epochs=1)
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    before = other[0].weight.detach().clone()
    with pytest.raises(CheckpointError) as caught:
        tiny(tmp_path, model=other, resume="auto").fit(num_epochs=2)
    assert "missing     0.weight  (4, 3)" in str(caught.value)
    assert "unexpected  weight  (1, 3)" in str(caught.value)
    assert other[0].weight.equal(before)


def test_a_reshaped_weight_is_refused_even_without_strict_match(tmp_path: Path) -> None:
    tiny(tmp_path).fit(num_epochs=1)
    wide = [(torch.ones(2, 4), torch.ones(2, 1))] * 3
    with pytest.raises(CheckpointError, match=r"reshaped    weight  \(1, 3\) in the checkpoint"):
        tiny(tmp_path, model=nn.Linear(4, 1), data=wide, resume="auto").fit(num_epochs=2)


def test_strict_match_decides_about_missing_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class More(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.register_buffer("scale", torch.ones(1))

    tiny(tmp_path).fit(num_epochs=1)
    with pytest.raises(CheckpointError, match="strict_match = false loads what fits"):
        tiny(tmp_path, model=More(), strict_match=True, resume="auto").fit(num_epochs=2)
    tiny(tmp_path, model=More(), resume="auto").fit(num_epochs=2)
    assert "missing     scale  (1,)" in caplog.text


def test_an_explicit_path_has_no_fallback(tmp_path: Path) -> None:
    tiny(tmp_path, interval_by="step", save_hash=False).fit(num_steps=3)
    (tmp_path / "checkpoint-step-3" / "progress.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"step-3' cannot be used: .* no fallback"):
        tiny(tmp_path, resume=str(tmp_path / "checkpoint-step-3")).fit(num_steps=4)
    with pytest.raises(CheckpointError, match="did you mean 'checkpoint-step-3'"):
        tiny(tmp_path, resume=str(tmp_path / "checkpoint-step-4")).fit(num_steps=4)


def test_a_branch_from_an_older_checkpoint_is_newer_than_what_it_left(tmp_path: Path) -> None:
    tiny(tmp_path, interval_by="step", save_hash=False).fit(num_steps=6)
    options = {"interval_by": "step", "save_hash": False}
    tiny(tmp_path, resume=str(tmp_path / "checkpoint-step-2"), **options).fit(num_steps=4)
    found = CheckpointFolder(tmp_path).latest()
    assert found is not None
    assert found.path.name == "checkpoint-step-4.2"


def test_a_run_goes_on_from_what_is_marked_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = {"mode": "max", "monitor_metric_key": "val/acc", "interval_by": "step"}
    values = {"values": publishing([0.1, 0.9, 0.2, 0.3])}
    tiny(tmp_path / "a", values, **best).fit(num_steps=4)
    for resume, place in [("best", "a"), (str(tmp_path / "a" / "best"), "b")]:
        caplog.clear()
        tiny(tmp_path / place, values, resume=resume, **best).fit(num_steps=4)
        assert "epoch 0, step 2 of it, 2 steps in all" in caplog.text


@pytest.mark.parametrize(("metric", "mode"), [("val/error", "min"), ("val/acc", "min")])
def test_a_run_resumed_with_another_metric_or_mode_begins_a_new_best_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metric: str, mode: str
) -> None:
    options = {"interval_by": "step", "save_hash": False, "keep_best": 1, "resume": "auto"}
    before = {"values": publishing([0.2, 0.9, 0.3, 0.3])}
    was = {"mode": "max", "monitor_metric_key": "val/acc"}
    tiny(tmp_path, before, **was, **options).fit(num_steps=4)
    after = {"values": publishing([0.0] * 4 + [math.nan, math.nan, 0.95, 0.92, 0.96, 0.97], metric)}
    now = {"mode": mode, "monitor_metric_key": metric}

    tiny(tmp_path, after, **now, **options).fit(num_steps=6)
    said = f"starts anew: it was by 'val/acc' (max) in the saved run, is by {metric!r} ({mode}) in"
    assert said in caplog.text
    assert names(tmp_path) == [f"checkpoint-step-{n}" for n in (2, 5, 6)]
    assert marked_best(tmp_path) == "checkpoint-step-2"

    caplog.clear()
    tiny(tmp_path, after, **now, **options).fit(num_steps=10)
    assert "starts anew" not in caplog.text
    assert names(tmp_path) == [f"checkpoint-step-{n}" for n in (10, 8, 9)]
    assert marked_best(tmp_path) == "checkpoint-step-8"


def test_a_value_of_before_the_resume_makes_no_checkpoint_after_it_the_best(
    tmp_path: Path,
) -> None:
    @plugin(stage="validate")
    class PublishesOnce:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            if ctx.global_step_id == 1:
                ctx.log({"val/acc": 0.9, "val/loss": 0.1})

    options = {"interval_by": "step", "save_hash": False, "resume": "auto"}
    for (mode, key), steps in (("max", "val/acc"), 2), (("min", "val/loss"), 4):
        plugins = {"publishes": PublishesOnce()}
        run = tiny(tmp_path, plugins, mode=mode, monitor_metric_key=key, **options)
        run.fit(num_steps=steps)
    assert marked_best(tmp_path) == "checkpoint-step-2"


def test_a_state_that_does_not_say_what_its_best_is_of_is_taken_as_it_is(tmp_path: Path) -> None:
    checkpoint = Checkpoint(str(tmp_path), mode="min", monitor_metric_key="val/loss")
    checkpoint.load_state_dict({"best": 1.5, "task_sampler": None})
    assert checkpoint.best.value == 1.5


def test_what_is_not_there_gets_only_folders_with_checkpoints_as_known(tmp_path: Path) -> None:
    tiny(tmp_path / "first").fit(num_epochs=1)
    (tmp_path / "notes").mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint '.*zzz'; known: 'first'\n"):
        tiny(tmp_path / "b", resume=str(tmp_path / "zzz")).fit(num_epochs=2)
    with pytest.raises(CheckpointError, match="is marked 'best'; known: 'checkpoint-epoch-0001"):
        tiny(tmp_path / "first", resume="best").fit(num_epochs=2)


def marked_best(path: Path) -> str:
    return CheckpointFolder(path).pointed("best")
