"""No step waits for the device: not the trainer's own, and not with any plugin, at its interval."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.on_device import DEVICE, Losses, Net, Pair, Waits, batches, trainer
from torch.utils.data import TensorDataset

from hatbus import callbacks, hookimpl
from hatbus.data.loaders import loader
from hatbus.discovery.first_party import FIRST_PARTY

STEPS = 16
NAN = "ignore" if DEVICE == "cpu" else "raise"
"""On the host every loss is looked at, since that waits for nothing."""
ADAM: Any = partial(torch.optim.AdamW, lr=1e-3, foreach=True)
if DEVICE == "cpu":  # there Adam reads its step counters, which live on the host anyway
    ADAM = partial(torch.optim.RMSprop, lr=1e-3)


def test_the_guard_sees_a_wait_and_the_error_names_the_plugin() -> None:
    class Reads:
        @hookimpl
        def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
            losses["loss"].item()

    run = Waits().watch(trainer({"reader": Reads()}, nan=NAN))
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation") as caught:
        run.fit(num_steps=STEPS)
    assert "in plugin 'reader'" in caught.value.__notes__[0]
    assert run.ctx.global_step_id == 4


@pytest.mark.parametrize("nan", ["ignore", NAN])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_bare_trainer(nan: str, precision: str, accumulate: int) -> None:
    waits = Waits()
    data = batches(STEPS * accumulate)
    run = trainer(data=data, nan=nan, precision=precision, accumulate=accumulate)
    waits.watch(run).fit(num_steps=STEPS)
    assert (waits.steps, waits.count) == (9, 0)


def test_the_trainer_with_two_tasks_and_adam() -> None:
    waits = Waits()
    data = {"a": batches(), "b": batches(seed=1)}
    run = trainer(data=data, nan=NAN, optimizer=ADAM)
    waits.watch(run).fit(num_steps=STEPS)
    assert (waits.steps, waits.count) == (9, 0)


def test_batches_from_a_loader_with_pinned_memory() -> None:
    waits, first = Waits(), batches(1, size=128)[0]
    pinned = DEVICE == "cuda"
    data = loader(TensorDataset(*first), 8, seed=0, pin_memory=pinned)
    assert next(iter(data))[0].is_pinned() is pinned
    run = trainer(data=data, nan=NAN)
    waits.watch(run).fit(num_steps=STEPS)
    assert (waits.steps, waits.count) == (9, 0)


def test_fp16_waits_once_a_step_in_torchs_own_scaler() -> None:
    waits = Waits(strict=False)
    run = trainer(precision="fp16", nan=NAN)
    waits.watch(run).fit(num_steps=STEPS)
    assert waits.steps == 9
    assert waits.count <= 9


class Publishes:
    """Publishes the loss of every step, still on its device."""

    @hookimpl
    def on_step_end(self, ctx: Any, losses: dict[str, torch.Tensor]) -> None:
        ctx.log({f"train/{name}": loss.detach().clone() for name, loss in losses.items()})


def count_right(metrics: Any, batch: Any, model_outs: torch.Tensor, losses: Any) -> None:
    accuracy, mean = metrics
    accuracy.update(model_outs, batch[1])
    mean.update(losses["loss"], weight=len(batch[1]))


def metric_updater(folder: Path) -> object:
    from hatbus_monitor.metrics import Accuracy, Mean

    metrics = [Accuracy(), Mean("loss")]
    return callbacks.MetricUpdater(count_right, metrics, step_log_freq=1, step_storage_freq=1)


def step_lr(folder: Path) -> object:
    return callbacks.TorchLr("StepLR", {"step_size": 3})


C: Any = callbacks
MAKERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": lambda f: C.Checkpoint(str(f / "saved")),
    "cos_lr": lambda f: C.CosLrUpdater(warmup_len=6),
    "cosine_annealing_lr": lambda f: C.CosineAnnealingLrUpdater(),
    "csv_log": lambda f: C.CsvLog(f / "log.csv"),
    "cyclic_lr": lambda f: C.CyclicLrUpdater(),
    "early_stopping": lambda f: C.EarlyStopping("train/loss", patience=9),
    "ema": lambda f: C.ExponentialMovingAverage(0.9, 2),
    "freeze_bn_statistics": lambda f: C.FreezeBNStatistics(),
    "freeze_module": lambda f: C.FreezeModule([["stem"]], [6], "step", unfreeze_at=[9]),
    "fuse_bn": lambda f: C.FuseBN([["stem"]], [2], "step"),
    "grad_clip": lambda f: C.GradClip(1.0, log_interval=1),
    "grad_monitor": lambda f: C.GradMonitor(log_freq=50),
    "grad_scale": lambda f: C.GradScale([("stem", 0.5), ("a", 2.0)], clip_grad_norm=1.0),
    "jsonl_log": lambda f: C.JsonlLog(f / "log.jsonl"),
    "mean_teacher": lambda f: C.MeanTeacher(),
    "mean_teacher_validation": lambda f: C.MeanTeacherValidation("teacher", data_loader=batches(2)),
    "metric_updater": metric_updater,
    "nan_guard": lambda f: C.NanGuard(check_every=32),
    "noam_lr": lambda f: C.NoamLrUpdater(warmup_step=6),
    "one_cycle_lr": lambda f: C.OneCycleUpdater(lr_max=0.05),
    "poly_lr": lambda f: C.PolyLrUpdater(10, warmup_len=6),
    "progress": lambda f: C.Progress(display="plain", plain_interval=600),
    "save_traced": lambda f: C.SaveTraced(str(f / "traced"), (torch.ones(2, 3, 6, 6),)),
    "stats_monitor": lambda f: C.StatsMonitor(log_freq=1),
    "step_decay_lr": lambda f: C.StepDecayLrUpdater("step", lr_decay_id=[5, 9]),
    "tensorboard": lambda f: C.TensorBoard(str(f / "board"), flush_secs=600),
    "torch_lr": step_lr,
    "validation": lambda f: C.Validation(batches(2)),
}
WANTS_PAIR = ("mean_teacher", "mean_teacher_validation")


def test_every_first_party_plugin_is_here() -> None:
    without = {"freeze_observers"}  # it wants a model that imitates quantisation
    assert set(MAKERS) == set(FIRST_PARTY) - without


READS_ON_THE_HOST = ("tensorboard",)
"""Plugins that read tensors of the host at once, where that waits for nothing."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.needs_gpu if name in READS_ON_THE_HOST else ())
        for name in MAKERS
    ],
)
def test_a_plugin_does_not_wait_before_its_interval(name: str, tmp_path: Path) -> None:
    waits, plugins = Waits(), {"publishes": Publishes(), name: MAKERS[name](tmp_path)}
    run = trainer(plugins, model=Pair if name in WANTS_PAIR else Net, nan=NAN)
    waits.watch(run).fit(num_epochs=1)
    assert (waits.steps, waits.count) == (9, 0)


def test_values_clipped_do_not_wait_either() -> None:
    waits = Waits()
    waits.watch(trainer([callbacks.GradClip(max_value=0.1)], nan=NAN)).fit(num_steps=STEPS)
    assert (waits.steps, waits.count) == (9, 0)


def test_many_plugins_together_do_not_wait(tmp_path: Path) -> None:
    names = (
        "cos_lr", "grad_scale", "ema", "metric_updater", "tensorboard", "jsonl_log", "progress",
        "stats_monitor", "checkpoint", "validation", "freeze_module", "nan_guard",
    )  # fmt: skip
    names = [n for n in names if DEVICE == "cuda" or n not in READS_ON_THE_HOST]
    waits, plugins = Waits(strict=False), {name: MAKERS[name](tmp_path) for name in names}
    run = trainer({"losses": Losses(), **plugins}, nan=NAN, precision="bf16")
    waits.watch(run).fit(num_epochs=1)
    assert waits.steps == 9
    assert waits.count <= (0 if DEVICE == "cpu" else 1)


@pytest.mark.parametrize(
    ("plugin", "most"),
    [
        (lambda: callbacks.GradMonitor(log_freq=1, weights=True), 1),
        (lambda: callbacks.NanGuard(check_every=1), 1),
    ],
    ids=["grad_monitor", "nan_guard"],
)
def test_at_its_interval_there_is_one_transfer(plugin: Any, most: int) -> None:
    waits = Waits(strict=False)
    waits.watch(trainer([plugin()], nan="ignore")).fit(num_steps=STEPS)
    assert waits.steps == 9
    assert 9 <= waits.count <= 9 * most


def test_log_files_are_written_with_one_transfer(tmp_path: Path) -> None:
    waits = Waits(first=0, last=19, strict=False)
    log = callbacks.JsonlLog(tmp_path / "log.jsonl", flush_every=10)
    waits.watch(trainer([Publishes(), log], nan="ignore")).fit(num_steps=20)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 20
    assert waits.count <= (20 if DEVICE == "cpu" else 2)


def test_an_average_on_the_host_is_moved_with_few_waits() -> None:
    waits = Waits(strict=False)
    ema = callbacks.ExponentialMovingAverage(0.9, 2, offload=True)
    run = waits.watch(trainer([ema], nan="ignore"))
    run.fit(num_steps=STEPS)
    assert waits.count <= 2 * 9, "one for what is averaged, one for what is copied"
    assert {value.device.type for value in ema.averages().values()} == {"cpu"}
