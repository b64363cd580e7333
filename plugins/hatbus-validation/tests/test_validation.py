"""Validation: what is evaluated, when, and under which names."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from validated import (
    Average,
    Batches,
    Net,
    Raises,
    Saves,
    Snapshots,
    batches,
    mean_loss,
    same,
    trainer,
    weights,
)

from hatbus import BatchProcessor, CallbackMixin, Context, Trainer, hookimpl
from hatbus.errors import JobError, PluginError
from hatbus_validation.mean_losses import MeanLosses
from hatbus_validation.validation import Validation

torch.set_num_threads(1)


def test_without_callbacks_the_mean_loss_over_all_samples_is_published() -> None:
    data = [*batches(3), *batches(1, size=1, seed=7)]
    run = trainer(Validation(data))
    run.fit(num_epochs=1)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(mean_loss(run.ctx.model, data))


@pytest.mark.parametrize("more", [{"meta": list("abcd")}, {"scale": torch.tensor(1.0)}, {"no": {}}])
def test_a_batch_counts_as_its_samples_whatever_comes_before_them(more: dict[str, Any]) -> None:
    class OfTable(Net):
        def forward(self, inputs: Any) -> torch.Tensor:
            return super().forward(inputs["x"])

    data = [*batches(1), *batches(1, size=1, seed=7)]
    tables = [({**more, "x": x}, y) for x, y in data]
    run = trainer(Validation(tables), data=tables, model=OfTable())
    run.fit(num_steps=1)
    expected = mean_loss(run.ctx.model, tables)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(expected)


def test_metrics_reach_sinks_before_the_end_event_and_validate_returns_them() -> None:
    heard: list[Any] = []

    class Sink:
        @hookimpl
        def on_log(self, logs: dict[str, Any], kind: str, ctx: Context) -> None:
            heard.append((sorted(logs), kind, ctx.weights.current))

        @hookimpl
        def on_validation_begin(self) -> None:
            heard.append("begin")

        @hookimpl
        def on_validation_end(self, ctx: Context) -> None:
            heard.append(("end", float(ctx.latest["val/loss"])))

    run = trainer(Validation(batches(2)), Sink(), Average())
    run.fit(num_epochs=1)
    train = (["train/loss"], "scalar", "raw")
    assert heard[:3] == [train, "begin", (["val/loss"], "scalar", "raw")]
    assert heard[3][0] == "end"
    found = run.ctx.emit.validate(run.ctx, "by hand")
    assert list(found) == ["val/loss"]
    assert float(found["val/loss"]) == heard[3][1]


def test_images_and_names_of_training_are_published_as_their_kind_under_val() -> None:
    class Logs:
        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            ctx.log({"train/seen": torch.zeros(2, 2)}, "image")
            ctx.log({"val/score": 1.5})

    kinds: dict[str, list[str]] = {}

    class Sink:
        @hookimpl
        def on_log(self, logs: dict[str, Any], kind: str) -> None:
            kinds.setdefault(kind, []).extend(logs)

    trainer(Validation(batches(1), callbacks=[Logs()]), Sink()).fit(num_epochs=1)
    assert kinds == {"image": ["val/seen"], "scalar": ["train/loss", "val/score"]}


class Reasons:
    """Notes every validation: its reason and the steps behind it."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, int]] = []

    @hookimpl(wrapper=True)
    def validate(self, ctx: Context, reason: str) -> Any:
        self.noted.append((reason, ctx.position.global_step))
        return (yield)


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({}, 2, [("every epoch", 5), ("every epoch", 10)]),
        ({"val_interval": 2}, 3, [("every 2 epochs", 10), ("end of the run", 15)]),
        (
            {"val_interval": 4, "interval_by": "step"},
            2,
            [("every 4 steps", 4), ("every 4 steps", 8), ("end of the run", 10)],
        ),
        ({"val_interval": 5, "interval_by": "step"}, 1, [("every 5 steps", 5)]),
        ({"val_interval": 2, "val_on_train_end": False}, 3, [("every 2 epochs", 10)]),
        ({"val_interval": None}, 2, [("end of the run", 10)]),
        ({"callbacks": []}, 2, []),
    ],
)
def test_it_validates_at_its_interval_and_once_at_the_end(
    options: dict[str, Any], epochs: int, expected: list[tuple[str, int]]
) -> None:
    reasons = Reasons()
    trainer(Validation(batches(1), **options), reasons).fit(num_epochs=epochs)
    assert reasons.noted == expected


def test_an_epoch_cut_short_is_not_validated_but_the_end_of_the_run_is() -> None:
    reasons = Reasons()
    trainer(Validation(batches(1)), reasons).fit(num_steps=7)
    assert reasons.noted == [("every epoch", 5), ("end of the run", 7)]


def test_a_run_that_failed_is_not_validated() -> None:
    class Fails:
        @hookimpl
        def on_step_begin(self, step_id: int) -> None:
            if step_id == 3:
                raise RuntimeError

    reasons = Reasons()
    with pytest.raises(RuntimeError):
        trainer(Validation(batches(1), val_interval=4, interval_by="step"), Fails(), reasons).fit(1)
    assert reasons.noted == []


def test_an_empty_list_of_callbacks_never_touches_the_loader() -> None:
    class Untouchable:
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError

    run = trainer(Validation(Untouchable(), callbacks=[]))
    run.fit(num_epochs=1)
    assert run.ctx.emit.validate(run.ctx, "by hand") is False


def test_a_request_for_validation_is_served_at_the_step_boundary() -> None:
    class Asks:
        @hookimpl
        def on_step_end(self, ctx: Context, global_step_id: int) -> None:
            if global_step_id == 1:
                ctx.control.validate("curious")

    reasons = Reasons()
    trainer(Validation(batches(1), val_on_train_end=False), Asks(), reasons).fit(num_steps=3)
    assert reasons.noted == [("curious", 2)]


def test_requests_made_inside_reach_the_training_and_saving_waits_for_raw_weights() -> None:
    saved: list[tuple[str, str]] = []

    class Saver:
        @hookimpl
        def save_checkpoint(self, ctx: Context, reason: str) -> bool:
            saved.append((reason, ctx.weights.current))
            return True

    class Asks(CallbackMixin):
        def on_epoch_end(self, ctx: Context, **kwargs: Any) -> None:
            ctx.control.stop("run", "enough")
            assert ctx.save("best so far") is False

    run = trainer(Average(), Saver(), Validation(batches(1), callbacks=[Asks()]))
    run.fit(num_epochs=9)
    assert run.ctx.position.epoch == 1
    assert saved == [("best so far", "raw")]


def test_a_processor_of_its_own_is_used_and_one_with_gradients_refused() -> None:
    run = trainer(
        Validation(batches(2), BatchProcessor(nn.functional.l1_loss, need_grad_update=False))
    )
    run.fit(num_epochs=1)
    assert run.ctx.latest["val/loss"] != pytest.approx(mean_loss(run.ctx.model, batches(2)))
    run = trainer(Validation(batches(2), {"loss": nn.functional.mse_loss}))
    run.fit(num_epochs=1)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(mean_loss(run.ctx.model, batches(2)))
    wrong = trainer(Validation(batches(1), BatchProcessor(nn.functional.l1_loss)))
    with pytest.raises(PluginError, match="need_grad_update=False"):
        wrong.fit(num_epochs=1)


def test_precision_of_the_training_holds_in_validation_too() -> None:
    seen: list[torch.dtype] = []

    class Dtype:
        @hookimpl
        def on_forward_end(self, model_outs: torch.Tensor) -> None:
            seen.append(model_outs.dtype)

    run = trainer(Validation(batches(1), callbacks=[Dtype()]), precision="bf16")
    run.fit(num_epochs=1)
    assert seen == [torch.bfloat16]


def test_the_profiler_writes_a_trace_that_perfetto_can_read(tmp_path: Path) -> None:
    options = {"wait": 0, "warmup": 1, "active": 2, "activities": ["cpu"]}
    run = trainer(Validation(batches(6), profiler=options), run_dir=tmp_path)
    run.fit(num_epochs=2)
    (trace,) = (run.ctx.run_dir / "profile").iterdir()
    assert trace.name.endswith(".pt.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::mse_loss" in names
    with pytest.raises(PluginError, match="unknown profiler option 'warm_up'; did you mean"):
        Validation(batches(1), profiler={"warm_up": 1})
    with pytest.raises(PluginError, match="unknown profiler activity 'gpu'"):
        Validation(batches(1), profiler={"activities": ["gpu"]})


def test_a_signal_cuts_a_validation_short_and_the_resumed_run_makes_up_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cuts:
        """A signal comes during the second validation."""

        left = 4

        @hookimpl
        def on_batch_end(self) -> None:
            self.left -= 1
            if self.left == 0:
                monkeypatch.setattr("hatbus_validation.evaluation_loop.stop_wanted", lambda: True)
                monkeypatch.setattr("hatbus_validation.validation.stop_wanted", lambda: True)

    class Published:
        def __init__(self) -> None:
            self.values: list[tuple[int, int, float]] = []

        @hookimpl
        def on_log(self, ctx: Context, logs: dict[str, Any]) -> None:
            if "val/loss" in logs:
                found = (ctx.epoch_id, ctx.global_step_id, float(logs["val/loss"]))
                self.values.append(found)

    def watched(*plugins: object) -> tuple[Trainer, Published]:
        published = Published()
        run = trainer(*plugins, published)
        run.fit(num_epochs=3)
        return run, published

    def validation(*callbacks: object) -> Validation:
        return Validation(batches(3), callbacks=[{"type": MeanLosses}, *callbacks])

    whole, expected = watched(validation())
    snapshots = Snapshots()
    cut, before = watched(validation(Cuts()), snapshots)
    assert cut.ctx.position.global_step == 10
    monkeypatch.undo()
    resumed, after = watched(validation(), Snapshots(snapshots.kept))
    assert before.values + after.values == expected.values
    assert [epoch for epoch, _, _ in after.values] == [1, 2]
    assert same(weights(resumed), weights(whole))


def test_a_progress_bar_is_told_every_step() -> None:
    shown: list[tuple[str, int, int | None]] = []

    class Bar:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.storage["progress"] = lambda *values: shown.append(values)

    trainer(Validation({"a": batches(2), "b": batches(1)}), Bar()).fit(num_epochs=1)
    assert shown == [
        ("validation of 'a'", 1, 2),
        ("validation of 'a'", 2, 2),
        ("validation of 'b'", 1, 1),
    ]


def test_lines_are_logged_every_log_interval(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hatbus"):
        trainer(Validation(batches(5), log_interval=2)).fit(num_epochs=1)
    said = [r.getMessage() for r in caplog.records]
    assert [line[:25] for line in said[:2]] == [
        "validation: step 2 of 5, ",
        "validation: step 4 of 5, ",
    ]
    assert said[2].startswith("validation (every epoch) after 5 steps: val/loss 1.")


def test_callbacks_may_be_tables_with_filters_and_two_of_one_class() -> None:
    validation = Validation(
        batches(4), callbacks=[{"type": Batches, "every": "2 steps"}, {"type": Batches}]
    )
    trainer(validation).fit(num_epochs=1)
    (one, other) = validation.callbacks[0]
    assert (one.name, other.name) == ("batches", "batches_2")
    assert (len(one.callback.seen), len(other.callback.seen)) == (2, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"type": Raises, "att": 1}, "unknown option 'att'; did you mean 'at'"),
        ({"type": Raises}, "missing option 'at'"),
        ({"metrics": []}, "names no plugin in 'use'"),
        ({"use": "metric_updatr"}, "unknown type 'metric_updatr'; did you mean 'metric_updater'"),
    ],
)
def test_wrong_tables_are_refused_in_words(table: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Validation(batches(1), callbacks=[table])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_interval": 0}, "val_interval is 0; accepted: a whole number of at least 1"),
        ({"log_interval": -1}, "log_interval is -1; accepted: a whole number of at least 1"),
        ({"interval_by": "steps"}, "interval_by is 'steps'; accepted: .*did you mean 'step'"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        Validation(batches(1), **options)


def test_a_batch_that_is_no_pair_is_refused_as_in_training() -> None:
    with pytest.raises(JobError, match="not a pair"):
        trainer(Validation([torch.zeros(4, 3)])).fit(num_epochs=1)


def test_metric_updater_and_ema_of_their_own_distributions_work_inside() -> None:
    monitor = pytest.importorskip("hatbus_monitor.metric_updater")
    ema = pytest.importorskip("hatbus_model.ema")

    def add(metrics: Any, losses: dict[str, torch.Tensor]) -> None:
        metrics[0].update(losses["loss"], 4)

    def update(metrics: Any, batch: Any, model_outs: Any, losses: Any) -> None:
        add(metrics, losses)

    table = {
        "type": monitor.MetricUpdater,
        "metric_update_func": update,
        "metrics": ["loss"],
        "step_log_freq": 0,
    }
    data, saves = batches(3, seed=4), Saves()
    average = ema.ExponentialMovingAverage(decay=0.9, decay_base=2)
    run = trainer(average, Validation(data, callbacks=[table]), saves)
    run.fit(num_epochs=2)
    assert float(run.ctx.latest["val/loss"]) != pytest.approx(mean_loss(run.ctx.model, data))
    with run.ctx.weights.showing("ema"):
        expected = mean_loss(run.ctx.model, data)
    assert float(run.ctx.latest["val/loss"]) == pytest.approx(expected)
    assert torch.equal(saves.saved["loop"][0], next(run.ctx.model.parameters()))
