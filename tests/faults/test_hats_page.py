"""Every class of HAT's callbacks page is built and called just as the page writes it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hatbus.callbacks
from hatbus import CallbackMixin, Trainer
from hatbus.errors import HatbusError
from hatbus.testing import batches as tiny_batches

torch.set_num_threads(1)
REQUIRED = inspect.Parameter.empty
WARMUP = {
    "warmup_by": "step",
    "warmup_len": 0,
    "warmup_mode": "linear",
    "warmup_begin_lr": 0.0,
    "warmup_lr_ratio": 1.0,
}
BY_MARK = {"modules": REQUIRED, "step_or_epoch": REQUIRED, "update_by": REQUIRED}
PAGE: dict[str, dict[str, Any]] = {
    "Checkpoint": {
        "save_dir": REQUIRED,
        "name_prefix": "",
        "save_interval": 1,
        "interval_by": "epoch",
        "save_on_train_end": True,
        "strict_match": False,
        "mode": None,
        "monitor_metric_key": None,
        "best_refer_metric": None,
        "task_sampler": None,
        "save_hash": True,
    },
    "CosLrUpdater": {"max_steps": -1, "stop_lr": 0.0, **WARMUP, "step_log_interval": 1},
    "CosineAnnealingLrUpdater": {"stop_lr": 0.0, **WARMUP, "step_log_interval": 1},
    "CyclicLrUpdater": {
        "target_ratio": (10, 0.0001),
        "cyclic_times": 1,
        "step_ratio_up": 0.4,
        "step_log_interval": 1,
    },
    "ExponentialMovingAverage": {"decay": 0.9999, "decay_base": 2000},
    "FreezeBNStatistics": {},
    "FreezeModule": {**BY_MARK, "only_batchnorm": False},
    "FuseBN": {**BY_MARK, "inplace": False},
    "GradScale": {"module_and_scale": REQUIRED, "clip_grad_norm": None, "clip_norm_type": 2},
    "MeanTeacherValidation": {"inference_on": "student"},
    "MetricUpdater": {
        "metric_update_func": REQUIRED,
        "metrics": None,
        "filter_condition": None,
        "step_log_freq": 1,
        "reset_metrics_by": "epoch",
        "epoch_log_freq": 1,
        "log_prefix": "",
        "step_storage_freq": -1,
        "epoch_storage_freq": -1,
        "storage_key": "monitor_obj",
    },
    "NoamLrUpdater": {
        "d_model": 256,
        "warmup_step": 4000,
        "update_by": "step",
        "step_log_interval": 1,
    },
    "OneCycleUpdater": {
        "lr_max": 0.001,
        "div_factor": 10.0,
        "pct_start": 0.4,
        "stop_lr": 0.0,
        "warmup_by": "step",
        "step_log_interval": 1,
    },
    "PolyLrUpdater": {
        "max_update": REQUIRED,
        "update_by": "step",
        "power": 1.0,
        "final_lr": 0.0,
        "warmup_by": "step",
        "warmup_mode": "linear",
        "warmup_len": 0,
        "warmup_begin_lr": 0.0,
        "warmup_lr_ratio": 1.0,
        "step_log_interval": 1,
    },
    "SaveTraced": {
        "save_dir": REQUIRED,
        "trace_inputs": REQUIRED,
        "name_prefix": "",
        "allow_anno_miss": True,
        "save_hash": True,
        "forward_before_trace": False,
    },
    "StatsMonitor": {"log_freq": 200, "batch_size": None},
    "StepDecayLrUpdater": {
        "update_by": "epoch",
        **WARMUP,
        "warmup_by": "epoch",
        "step_log_interval": 1,
        "lr_decay_id": None,
        "lr_decay_factor": 0.1,
    },
    "TensorBoard": {
        "save_dir": REQUIRED,
        "overwrite": False,
        "loss_name_reg": "^.*loss.*",
        "update_freq": 1,
        "update_by": "step",
        "tb_update_funcs": None,
    },
    "Validation": {
        "data_loader": REQUIRED,
        "batch_processor": REQUIRED,
        "callbacks": REQUIRED,
        "val_interval": 1,
        "interval_by": "epoch",
        "val_model": None,
        "model_convert_pipeline": None,
        "init_with_train_model": True,
        "strict_match": False,
        "val_on_train_end": True,
        "profiler": None,
        "share_callbacks": True,
        "log_interval": 10,
    },
}
"""Class to its arguments on the page, in order, with their defaults."""
NOT_OPTIONAL = {
    "CosLrUpdater": {"stop_lr"},
    "CosineAnnealingLrUpdater": {"stop_lr"},
    "CyclicLrUpdater": {"target_ratio"},
    "FreezeModule": {"only_batchnorm"},
    "FuseBN": {"inplace"},
    "NoamLrUpdater": {"d_model", "warmup_step"},
    "OneCycleUpdater": {"lr_max", "div_factor", "pct_start", "stop_lr"},
    "SaveTraced": {"name_prefix", "allow_anno_miss", "save_hash", "forward_before_trace"},
    "StatsMonitor": {"log_freq"},
    "StepDecayLrUpdater": {"lr_decay_factor"},
    "TensorBoard": {"overwrite", "loss_name_reg", "update_freq", "update_by"},
    "Checkpoint": {"save_hash"},
    "Validation": {"share_callbacks"},
}
"""Arguments with a default that the page does not call Optional."""


def update(metrics: Any, batch: Any, model_outs: Any) -> None:
    for metric in metrics:
        metric.update(model_outs.mean())


def given(name: str) -> dict[str, Any]:
    """A value for everything that a class requires."""
    values = {
        "save_dir": "run",
        "modules": [["0"]],
        "step_or_epoch": [1],
        "update_by": "step",
        "module_and_scale": [("0", 0.1)],
        "metric_update_func": update,
        "max_update": 5,
        "trace_inputs": (torch.zeros(1, 3),),
        "data_loader": tiny_batches(1),
        "batch_processor": None,
        "callbacks": [],
    }
    wanted = {n: values[n] for n, default in PAGE[name].items() if default is REQUIRED}
    return {**wanted, **({"data_loader": []} if name == "MeanTeacherValidation" else {})}


def class_of(name: str) -> Any:
    return getattr(hatbus.callbacks, name)


@pytest.mark.parametrize("name", PAGE)
def test_arguments_have_the_pages_names_order_and_defaults(name: str) -> None:
    parameters = list(inspect.signature(class_of(name)).parameters.values())
    firsts = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][: len(PAGE[name])]
    assert [p.name for p in firsts] == list(PAGE[name])
    for parameter, default in zip(firsts, PAGE[name].values(), strict=True):
        lenient = name in {"MetricUpdater", "Validation"} and default is REQUIRED
        assert lenient or parameter.default == default, parameter


@pytest.mark.parametrize("name", PAGE)
def test_it_is_built_by_position_by_name_and_as_a_config(name: str) -> None:
    cls, values = class_of(name), given(name)
    every = {n: values.get(n, default) for n, default in PAGE[name].items()}
    if name != "MeanTeacherValidation":
        cls(*every.values())
    cls(**{**every, **values})
    model = nn.Sequential(nn.Linear(3, 1))
    config = {"type": name, **values}
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1), tiny_batches(1), plugins=[config]
    )
    assert any(type(member.plugin) is cls for member in trainer.bus.members.values())


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name, options in PAGE.items()
        for option, default in options.items()
        if default is not REQUIRED and name != "MeanTeacherValidation"
        if option not in NOT_OPTIONAL.get(name, ())
    ],
)
def test_none_is_taken_where_the_page_says_optional(name: str, option: str) -> None:
    class_of(name)(**{**given(name), option: None})


@pytest.mark.parametrize(
    "option", ["warmup_by", "warmup_len", "warmup_mode", "warmup_begin_lr", "warmup_lr_ratio"]
)
def test_none_is_the_default_of_a_warmup(option: str) -> None:
    cls = class_of("StepDecayLrUpdater")
    assert cls(**{option: None}).warmup == cls().warmup


MODEL = nn.Sequential(nn.Linear(3, 1, bias=False))


def stepped(model: nn.Module = MODEL) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("name", [name for name in PAGE if name.endswith(("LrUpdater", "Updater"))])
def test_the_methods_of_updaters_are_called_as_on_the_page(name: str) -> None:
    if name == "MetricUpdater":
        return
    updater = class_of(name)(**given(name))
    optimizer = stepped()
    updater.on_loop_begin(optimizer, tiny_batches(4), 3, model=MODEL, batch=None)
    assert isinstance(updater.get_lr(0.1, 5), float)
    assert isinstance(updater.get_warmup_lr(0.1, 0), float)
    updater.set_warmup_training_lr(optimizer, 0)
    if name == "OneCycleUpdater":
        assert class_of(name).annealing_cos(1.0, 0.0, 0.5) == pytest.approx(0.5)


def test_metric_updater_on_batch_end_updates_its_metrics_or_those_given() -> None:
    updater = class_of("MetricUpdater")(update, ["mean"])
    updater.on_batch_end(batch=None, model_outs=torch.tensor([1.0, 3.0]), train_metrics=[])
    updater.on_batch_end(None, torch.tensor([5.0, 7.0]), [], task="x")
    assert updater.metrics["mean"].compute() == 4.0
    metric = class_of("MetricUpdater")(update, ["mean"]).metrics["mean"]
    class_of("MetricUpdater")(update).on_batch_end(None, torch.tensor([8.0]), [metric])
    assert metric.compute() == 8.0


def test_grad_scale_on_backward_end_scales_the_task() -> None:
    scale = class_of("GradScale")([("0", 0.5, "a"), ("0", 4.0, "b")])
    MODEL(torch.ones(1, 3)).sum().backward()
    before = MODEL[0].weight.grad.clone()
    scale.on_backward_end(MODEL, None, stepped(), task="a")
    assert torch.equal(MODEL[0].weight.grad, before * 0.5)
    scale.on_backward_end(model=MODEL, batch=None, optimizer=stepped(), task="c")
    assert torch.equal(MODEL[0].weight.grad, before * 0.5)


def test_fuse_bn_checks_names_and_fuses_as_on_the_page() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))
    fuse = class_of("FuseBN")(modules=[["0"], ["0"]], step_or_epoch=[1, 2], update_by="step")
    fuse.on_loop_begin(model, optimizer=None)
    fuse.process(model, "0", inplace=False)
    assert isinstance(model[0][1], nn.Identity)
    with pytest.raises(HatbusError, match=r"unknown module '0\.7'"):
        class_of("FuseBN")([["0.7"]], [1], "step").on_loop_begin(model)


def test_freeze_module_process_freezes_in_place() -> None:
    model = nn.Sequential(nn.Linear(3, 1))
    class_of("FreezeModule")([["0"]], [1], "step", only_batchnorm=True).process(model, "0")
    assert all(p.requires_grad for p in model.parameters())
    class_of("FreezeModule")([["0"]], [1], "step").process(model, "0")
    assert not any(p.requires_grad for p in model.parameters())


def test_tensorboard_on_batch_end_may_be_called_without_a_run(tmp_path: Path) -> None:
    board = class_of("TensorBoard")(str(tmp_path))
    board.on_batch_end()
    board.on_batch_end({"loss": torch.ones(())}, 3, batch=None)


def train(plugins: Any, epochs: int = 2, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1))
    options = {"loss": nn.functional.mse_loss, **options}
    trainer = Trainer(model, stepped(model), tiny_batches(4), plugins=plugins, **options)
    trainer.fit(num_epochs=epochs)
    return trainer


def test_a_callback_of_hats_may_ask_for_loop_storage_scaler_and_averages() -> None:
    seen: dict[str, Any] = {}

    class Mine(CallbackMixin):
        def on_loop_begin(self, loop: Any, storage: Any, grad_scaler: Any, **kwargs: Any) -> None:
            seen.update(loop=loop, storage=storage, scaler=grad_scaler, more=sorted(kwargs))

        def on_step_end(self, ema_model: Any, **kwargs: Any) -> None:
            seen["ema"] = ema_model

        def on_loop_end(self, ctx: Any, **kwargs: Any) -> None:
            with ctx.weights.showing("ema"):
                seen["shown"] = [p.clone() for p in ctx.model.parameters()]

    trainer = train([Mine(), {"type": "ExponentialMovingAverage"}])
    assert seen["loop"] is trainer.ctx
    assert seen["storage"] is trainer.ctx.storage
    assert seen["scaler"] is None
    assert "ema_model" not in seen["more"]
    assert "model" in seen["more"]
    averaged = list(seen["ema"].parameters())
    assert all(map(torch.equal, averaged, seen["shown"]))
    assert train([Mine2()]).ctx.storage["ema"] is None


class Mine2(CallbackMixin):
    def on_step_end(self, ema_model: Any, storage: Any, **kwargs: Any) -> None:
        storage["ema"] = ema_model


def test_a_subclass_in_hats_style_takes_the_place_of_its_parents_method() -> None:
    calls: list[int] = []

    class Sub(class_of("MetricUpdater")):  # type: ignore[misc]  # found when asked for
        def on_batch_end(
            self, batch: Any, model_outs: Any, train_metrics: Any, **kwargs: Any
        ) -> None:
            calls.append(kwargs["global_step_id"])
            super().on_batch_end(batch, model_outs, train_metrics, **kwargs)

    own = train([Sub(update, ["mean"])]).ctx.latest
    assert calls == list(range(8))
    assert own == train([class_of("MetricUpdater")(update, ["mean"])]).ctx.latest


def test_the_interface_class_takes_anything_by_name() -> None:
    callback = CallbackMixin()
    for name in ("on_batch_begin", "on_batch_end", "on_loop_begin", "on_step_end"):
        assert getattr(callback, name)(batch=1, model_outs=2, anything=3) is None
