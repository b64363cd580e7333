"""A metric's name that is a slip is known before any training is lost."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny import batches, tiny_trainer

from hatbus import CallbackMixin, Context, hookimpl
from hatbus.callbacks import Checkpoint, EarlyStopping, MetricUpdater, TorchLr, Validation
from hatbus.errors import JobError


class Steps:
    """Counts the steps; cannot publish, as it is not given the context."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        self.count += 1


def parts(outs: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"box": (outs - target).abs().mean(), "cls": (outs**2).mean()}


def own_loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (outs - target).abs().mean()


CASES = [
    (None, "val/los", 0, "; did you mean 'val/loss'?"),
    (None, "val_loss", 0, "; did you mean 'val/loss'?"),
    (None, "train/los", 0, "; did you mean 'train/loss'?"),
    (None, "accuracy", 0, "; known: 'train/loss', 'train/loss_step', 'val/loss'"),
    (own_loss, "val/los", 1, "; did you mean 'val/loss'?"),
    (parts, "val/bok", 1, "; did you mean 'val/box'?"),
    (parts, "train/los", 1, "; did you mean 'train/loss'?"),
]


@pytest.mark.parametrize(("loss", "name", "steps", "hint"), CASES)
def test_a_name_that_nothing_publishes_is_refused_before_the_first_step_or_after_it(
    tmp_path: Any, loss: Any, name: str, steps: int, hint: str
) -> None:
    made = loss or torch.nn.functional.mse_loss
    for watcher, what in [
        (EarlyStopping(name), "early_stopping: monitor"),
        (
            Checkpoint(str(tmp_path), mode="min", monitor_metric_key=name),
            "checkpoint: monitor_metric_key",
        ),
        (TorchLr("ReduceLROnPlateau", update_by="epoch", metric=name), "torch_lr: metric"),
    ]:
        seen = Steps()
        trainer = tiny_trainer([Validation(batches(1)), watcher, seen], loss=made)
        with pytest.raises(JobError) as caught:
            trainer.fit(num_epochs=2)
        said = f"{what} is {name!r}, and nothing in this run publishes that"
        assert str(caught.value).startswith(said)
        if not isinstance(watcher, TorchLr):  # which publishes lr as well
            assert str(caught.value) == said + hint
        assert seen.count == steps
        assert not any(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (None, "val/loss"),
        (own_loss, "val/loss"),
        (parts, "val/cls"),
        (parts, "train/loss"),
        (None, "train/loss"),
    ],
)
def test_a_name_that_is_published_is_taken(loss: Any, name: str) -> None:
    made = loss or torch.nn.functional.mse_loss
    tiny_trainer([Validation(batches(1)), EarlyStopping(name, patience=9)], loss=made).fit(
        num_epochs=2
    )


def test_names_of_metrics_loaders_and_tasks_are_known() -> None:
    def slip(validation: Validation, name: str, data: Any = None) -> str:
        with pytest.raises(JobError) as caught:
            tiny_trainer([validation, EarlyStopping(name)], data).fit(num_epochs=1)
        return str(caught.value).rpartition("; ")[2]

    metric = MetricUpdater(metrics=[{"type": "mean", "name": "NDS"}])
    assert slip(Validation(batches(1), callbacks=[metric]), "val/ND") == "did you mean 'val/NDS'?"
    two = {"clean": batches(1), "noisy": batches(1)}
    assert slip(Validation(two), "val/nosy/loss") == "did you mean 'val/noisy/loss'?"
    tasks = {"one": batches(2), "two": batches(2)}
    found = slip(Validation(tasks), "val/on/loss", tasks)
    assert found == "did you mean 'val/one/loss'?"


def test_where_a_plugin_of_ones_own_may_publish_it_a_slip_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Publishes:
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.log({"val/los": 1.0})

    class Hats(CallbackMixin):
        def on_epoch_end(self, loop: Context, **kwargs: Any) -> None:
            loop.log({"val/los": 1.0})

    for plugin in (Publishes(), Hats()):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hatbus"):
            watcher = EarlyStopping("val/los", patience=9)
            tiny_trainer([plugin, Validation(batches(1)), watcher]).fit(num_epochs=2)
        told = [r.getMessage() for r in caplog.records]
        (line,) = told
        assert line.startswith("early_stopping: monitor is 'val/los', and no plugin says that it")
        assert line.endswith("did you mean 'val/loss'?")


def test_a_plugin_that_says_what_it_publishes_is_believed() -> None:
    class Tells:
        def published_names(self, ctx: Context) -> list[str]:
            return ["speed", "part/*"]

        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.log({"speed": 1.0, "part/a": 1.0})

    for name in ("speed", "part/a"):
        tiny_trainer([Tells(), EarlyStopping(name, patience=9)]).fit(num_epochs=1)
    with pytest.raises(JobError, match="did you mean 'speed'"):
        tiny_trainer([Tells(), EarlyStopping("sped")]).fit(num_epochs=1)
