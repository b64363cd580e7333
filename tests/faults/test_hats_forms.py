"""Forms that HAT's configs give to the callbacks of its page, each with what it means."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hatbus.callbacks
from hatbus import CallbackMixin, Trainer
from hatbus.errors import HatbusError
from hatbus.testing import batches as tiny_batches

torch.set_num_threads(1)


def class_of(name: str) -> Any:
    return getattr(hatbus.callbacks, name)


def update(metrics: Any, batch: Any, model_outs: Any) -> None:
    for metric in metrics:
        metric.update(model_outs.mean())


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(plugins: Any, epochs: int = 2, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1))
    options = {"loss": nn.functional.mse_loss, **options}
    trainer = Trainer(model, stepped(model), tiny_batches(4), plugins=plugins, **options)
    trainer.fit(num_epochs=epochs)
    return trainer


class Eval:
    """HAT's metric: update, reset, get."""

    def __init__(self, names: Any = "Acc", name: Any = "Acc") -> None:
        self.names, self.name, self.total = names, name, 0.0

    def reset(self) -> None:
        self.total = 0.0

    def update(self, value: Tensor) -> None:
        self.total += value.item()

    def get(self) -> tuple[Any, Any]:
        if isinstance(self.names, str):
            return self.names, self.total
        return self.names, [self.total * n for n in range(1, len(self.names) + 1)]


def ones(metrics: Any, batch: Any, model_outs: Any) -> None:
    for metric in metrics:
        metric.update(torch.ones(()))


def test_metrics_with_get_are_published_under_the_names_they_give() -> None:
    updater = {"type": "MetricUpdater", "metric_update_func": ones}
    latest = train([{**updater, "metrics": [Eval(), Eval(["AP", "NDS"], "det")]}]).ctx.latest
    assert {n: float(v) for n, v in latest.items()} == {
        "train/Acc": 4.0,
        "train/AP": 4.0,
        "train/NDS": 8.0,
    }


@pytest.mark.parametrize(
    ("options", "best"),
    [
        ({"monitor_metric_key": "NDS"}, 8.0),
        ({"monitor_metric_key": "val/NDS"}, 8.0),
        ({"best_refer_metric": {"type": Eval, "name": "AP"}}, 4.0),
        ({"best_refer_metric": Eval(["AP", "NDS"], ["AP", "NDS"])}, 4.0),
        ({"best_refer_metric": Eval(["AP", "NDS"], "det"), "monitor_metric_key": "NDS"}, 8.0),
        ({}, None),
    ],
)
def test_best_goes_by_every_form_of_the_page(
    tmp_path: Path, options: dict[str, Any], best: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    inner = {"type": "MetricUpdater", "metric_update_func": ones, "metrics": [Eval(["AP", "NDS"])]}
    checkpoint = class_of("Checkpoint")(str(tmp_path), mode="max", **options)
    with caplog.at_level(logging.INFO, "hatbus"):
        train([class_of("Validation")(tiny_batches(4), None, [inner]), checkpoint], 1)
    assert checkpoint.best.value == best
    if best is None:
        assert "mode is given and no metric, and there are several" in caplog.text
    elif "val/NDS" not in options.values():
        assert "checkpoint: best goes by 'val/" in caplog.text


def test_with_a_mode_alone_best_is_the_only_metric_or_the_first_of_val_metrics(
    tmp_path: Path,
) -> None:
    def saved(metrics: Any, **options: Any) -> float | None:
        inner = {"type": "MetricUpdater", "metric_update_func": ones, "metrics": metrics}
        folder = str(tmp_path / str(len(list(tmp_path.iterdir()))))
        checkpoint = class_of("Checkpoint")(folder, mode="max")
        train([class_of("Validation")(tiny_batches(4), None, [inner]), checkpoint], 1, **options)
        value: float | None = checkpoint.best.value
        return value

    assert saved([Eval("Acc")]) == 4.0
    assert saved(None, val_metrics=[Eval("Acc"), Eval("Other", "Other")]) == 4.0


def test_a_key_that_nobody_publishes_is_told_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for key, said in (("val/ND", "val/NDS"), ("ND", "NDS")):
        caplog.clear()
        inner = {
            "type": "MetricUpdater",
            "metric_update_func": update,
            "metrics": [{"type": "mean", "name": "NDS"}],
        }
        stop = Stops()
        plugins = [
            class_of("Validation")(tiny_batches(1), None, [inner]),
            class_of("Checkpoint")(str(tmp_path / said), mode="max", monitor_metric_key=key),
            stop,
        ]
        with caplog.at_level(logging.WARNING, "hatbus"):
            train(plugins, 1)
        assert stop.heard_before is not None
        start = f"checkpoint: monitor_metric_key is {key!r}, and no plugin says that it publishes"
        assert caplog.messages[0].startswith(start)
        assert caplog.messages[0].endswith(f"did you mean {said!r}?")
        assert caplog.records[0].created <= stop.heard_before


class Stops(CallbackMixin):
    """Notes when the first step began."""

    heard_before: float | None = None

    def on_step_begin(self, **kwargs: Any) -> None:
        import time

        self.heard_before = self.heard_before or time.time()


def in_order(batch: Any, model_outs: Any) -> bool:
    return isinstance(batch, (tuple, list))


def as_on_the_page(model_outs: Any, batch: Any) -> bool:
    return isinstance(batch, (tuple, list))


def batch_alone(batch: Any) -> bool:
    return isinstance(batch, (tuple, list))


def other_names(b: Any, o: Any) -> bool:
    return isinstance(b, (tuple, list))


def with_task(task: Any, **more: Any) -> bool:
    return task is None


@pytest.mark.parametrize(
    "condition", [in_order, as_on_the_page, batch_alone, other_names, with_task]
)
def test_a_filter_condition_gets_its_arguments_by_name(condition: Any) -> None:
    updater = class_of("MetricUpdater")(ones, ["mean"], filter_condition=condition)
    assert train([updater]).ctx.latest["train/mean"] == 1.0


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (lambda outs, batch: True, "wants unknown argument 'outs'"),
        (lambda x: True, "cannot be called with"),
        (lambda a, b, c: True, "cannot be called with"),
        (3, "filter_condition is 3; accepted: a function of batch, model_outs, task"),
    ],
)
def test_a_filter_condition_that_cannot_be_called_is_refused_when_built(
    condition: Any, message: str
) -> None:
    with pytest.raises(HatbusError, match=message):
        class_of("MetricUpdater")(ones, ["mean"], filter_condition=condition)


@pytest.mark.parametrize("by", ["epoch", "log", "step"])
def test_epoch_storage_keeps_a_row_an_epoch_however_metrics_are_reset(by: str) -> None:
    updater = class_of("MetricUpdater")(
        lambda metrics, batch, model_outs: metrics[0].update(model_outs.mean()),
        ["mean"],
        reset_metrics_by=by,
        step_log_freq=3,
        epoch_storage_freq=1,
    )
    rows = train([updater]).ctx.storage["monitor_obj"]
    assert [(row["epoch_id"], row["global_step_id"]) for row in rows] == [(0, 3), (1, 7)]
    assert all("train/mean" in row for row in rows)


def test_two_updaters_of_one_kind_publish_under_names_of_their_own() -> None:
    updater = {"type": "MetricUpdater", "metric_update_func": ones, "metrics": ["mean"]}
    assert set(train([updater, dict(updater)]).ctx.latest) == {
        "train/mean",
        "train/metric_updater_2/mean",
    }


@pytest.mark.parametrize(
    "function",
    [
        lambda writer, model_outs, step_id: writer.add_scalar("x", model_outs.shape[0], step_id),
        lambda w, outs, step: w.add_scalar("x", outs.shape[0], step),
        lambda writer, outs, step, **kwargs: kwargs["train_metrics"],
        lambda writer, **kwargs: (kwargs["model_outs"], kwargs["step_id"], kwargs["train_metrics"]),
        lambda writer, optimizer, train_metrics, epoch_id: optimizer.param_groups,
    ],
)
def test_tensorboard_functions_get_what_the_page_names(tmp_path: Path, function: Any) -> None:
    train(
        [class_of("TensorBoard")(str(tmp_path), tb_update_funcs=[function])], train_metrics=[Eval()]
    )


class WithDict(nn.Module):
    """A forward that takes a dict whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, data: dict[str, Tensor]) -> Any:
        outs = self.layer(data["img"])
        return {"pred": outs, "loss": outs.pow(2).mean()} if self.training else {"pred": outs}


def save_traced(folder: Path, inputs: Any) -> Any:
    model = WithDict()
    saver = class_of("SaveTraced")(str(folder), inputs)
    data = [{"img": torch.ones(2, 3)}]
    trainer = Trainer(model, stepped(model), data, plugins=[saver])
    trainer.fit(num_epochs=1)
    return model.eval(), torch.jit.load(saver.written[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is:DeprecationWarning")
def test_trace_inputs_may_be_a_dict_that_the_forward_takes_whole(tmp_path: Path) -> None:
    model, traced = save_traced(tmp_path, {"img": torch.ones(1, 3)})
    inputs = {"img": torch.randn(4, 3)}
    assert torch.equal(traced(inputs)["pred"], model(inputs)["pred"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": torch.ones(1, 3)}, "WithDict fails on trace_inputs .*KeyError"),
        ((torch.ones(1, 3), 1, 2), "trace_inputs is a tuple of 3, which WithDict.forward"),
    ],
)
def test_trace_inputs_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, inputs: Any, message: str
) -> None:
    with pytest.raises(HatbusError, match=message):
        save_traced(tmp_path, inputs)
    assert not list(tmp_path.iterdir())


def test_a_profiler_may_be_hats_config(tmp_path: Path) -> None:
    profiler = {"type": "SimpleProfiler", "dirpath": str(tmp_path), "wait": 0}
    validation = {
        "type": "Validation",
        "data_loader": tiny_batches(4),
        "callbacks": None,
        "profiler": profiler,
    }
    train([validation], 1)
    assert list(tmp_path.iterdir())
    with pytest.raises(HatbusError, match="unknown profiler type 'SimplProfiler'; did you mean"):
        class_of("Validation")(tiny_batches(1), profiler={"type": "SimplProfiler"})


def test_a_misspelt_key_of_the_pipeline_is_refused() -> None:
    with pytest.raises(HatbusError, match="unknown key 'converter'; did you mean 'converters'"):
        class_of("Validation")(tiny_batches(1), model_convert_pipeline={"converter": []})


def test_a_part_of_a_modules_name_is_refused_with_the_whole_names() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.img_backbone, self.lidar_backbone = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            return self.img_backbone(x) + self.lidar_backbone(x)

    model = Net()
    rule = {"type": "GradScale", "module_and_scale": [("backbone", 0.1)]}
    trainer = Trainer(model, stepped(model), tiny_batches(1), nn.functional.mse_loss, [rule])
    with pytest.raises(
        HatbusError,
        match="unknown module 'backbone'; did you mean 'img_backbone' or 'lidar_backbone'",
    ):
        trainer.fit(num_epochs=1)


def test_logging_intervals_write_lines_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    plugins = [
        {"type": "CosLrUpdater", "step_log_interval": 3},
        {
            "type": "MetricUpdater",
            "metric_update_func": ones,
            "metrics": ["mean"],
            "step_log_freq": 4,
        },
    ]
    with caplog.at_level(logging.INFO, "hatbus"):
        train(plugins)
    steps = [line for line in caplog.messages if line.startswith("step ")]
    assert [line.split(":")[0] for line in steps if "lr" in line] == ["step 3", "step 6"]
    assert [line for line in steps if "mean" in line] == [
        "step 4: train/mean 1",
        "step 8: train/mean 1",
    ]


def test_mean_teacher_validation_takes_parts_that_are_named_with_the_prefix() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student_layer, self.teacher_layer = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            return self.student_layer(x)

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    model, single = Pair(), Single()
    validation = class_of("MeanTeacherValidation")(
        "teacher", data_loader=tiny_batches(1), val_model=single
    )
    Trainer(
        model,
        torch.optim.SGD(model.student_layer.parameters(), lr=0.1),
        tiny_batches(1),
        nn.functional.mse_loss,
        [validation],
    ).fit(num_epochs=1)
    assert torch.equal(single.layer.weight, model.teacher_layer.weight)
