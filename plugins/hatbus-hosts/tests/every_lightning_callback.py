"""Callbacks of Lightning that nobody here wrote, in hatbus: `tox -e hosts`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import host_loops as loops
import host_nine
import pytest
import torch
from host_trained import trained
from pytorch_lightning import callbacks as lightnings

from hatbus import Context, HatbusError, hookimpl
from hatbus_hosts import LightningCallback

STEPS = loops.STEPS


def test_early_stopping_of_lightning_stops(tmp_path: Path) -> None:
    callback = lightnings.EarlyStopping("val/loss", patience=1, mode="max")
    found = trained(LightningCallback(callback), tmp_path, epochs=9)
    assert found.ctx.position.epoch < 9
    assert callback.stopped_epoch == found.ctx.position.epoch - 1


def test_timer_counts_and_stops(tmp_path: Path) -> None:
    timer = lightnings.Timer("00:00:10:00")
    trained(LightningCallback(timer), tmp_path)
    assert timer.time_elapsed("train") > 0
    short = lightnings.Timer("00:00:00:00")
    found = trained(LightningCallback(short), tmp_path / "b", epochs=9)
    assert found.ctx.position.global_step < 9 * STEPS


def test_lambda_callback_hears_its_hooks(tmp_path: Path) -> None:
    heard: list[str] = []
    callback = lightnings.LambdaCallback(
        on_train_start=lambda trainer, module: heard.append(f"start {trainer.max_epochs}"),
        on_train_batch_end=lambda trainer, module, outputs, batch, index: heard.append(
            f"batch {index} {outputs['loss'].item():.3f}"
        ),
        on_train_end=lambda trainer, module: heard.append("end"),
    )
    stranger = host_nine.Stranger()
    trained([LightningCallback(callback), stranger], tmp_path, epochs=1)
    batches = [f"batch {index} {loss:.3f}" for index, loss in enumerate(stranger.losses)]
    assert heard == ["start 1", *batches, "end"]


def test_learning_rate_monitor_publishes_rates(tmp_path: Path) -> None:
    found = trained(LightningCallback(lightnings.LearningRateMonitor("step")), tmp_path)
    assert found.ctx.latest["lr-SGD"] == 0.1


def test_device_stats_monitor_publishes_what_the_cpu_does(tmp_path: Path) -> None:
    found = trained(LightningCallback(lightnings.DeviceStatsMonitor(cpu_stats=True)), tmp_path)
    assert any("cpu_percent" in name for name in found.ctx.latest)


class Weights:
    """Takes a weight after every update."""

    def __init__(self) -> None:
        self.taken: list[torch.Tensor] = []

    @hookimpl
    def on_optimizer_step_end(self, ctx: Context) -> None:
        self.taken.append(ctx.model.head.weight.detach().clone())


def test_ema_weight_averaging_averages_what_the_updates_left_and_leaves_the_average(
    tmp_path: Path,
) -> None:
    """It begins with the weights after the first update, and ends with its average in the model."""
    averaging, weights = lightnings.EMAWeightAveraging(decay=0.9), Weights()
    found = trained([LightningCallback(averaging), weights], tmp_path)
    first, *later = weights.taken
    expected = first
    for one in later:
        expected = torch.lerp(expected, one, 1 - 0.9)
    assert len(later) == 3 * STEPS - 1
    average = found.ctx.model.head.weight.detach()  # by torch's lerp over lists: other roundings
    torch.testing.assert_close(average, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, later[-1], atol=1e-4)


def test_weight_averaging_leaves_the_mean_of_what_the_updates_left(tmp_path: Path) -> None:
    weights = Weights()
    plugins = [LightningCallback(lightnings.WeightAveraging()), weights]
    found = trained(plugins, tmp_path, epochs=1)
    expected = torch.stack(weights.taken).mean(dim=0)
    torch.testing.assert_close(found.ctx.model.head.weight.detach(), expected)
    assert len(weights.taken) == STEPS


def test_spike_detection_ends_a_run_whose_loss_jumps(tmp_path: Path) -> None:
    class Spoils:
        @hookimpl
        def on_step_begin(self, ctx: Context) -> None:
            if ctx.global_step_id == STEPS + 5:
                with torch.no_grad():
                    ctx.model.head.weight.mul_(1000)

    spikes = lightnings.SpikeDetection(warmup=4)
    with pytest.raises(RuntimeError, match="spike detected in batch 5"):
        trained([LightningCallback(spikes), Spoils()], tmp_path)
    assert spikes.bad_batches == [4, 5]


def test_pruning_prunes(tmp_path: Path) -> None:
    callback = lightnings.ModelPruning("l1_unstructured", amount=0.5)
    found = trained(LightningCallback(callback), tmp_path)
    assert (found.ctx.model.head.weight == 0).float().mean() >= 0.5


def test_backbone_finetuning_unfreezes_at_its_epoch(tmp_path: Path) -> None:
    class Seen(lightnings.BaseFinetuning):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[int] = []

        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.body, train_bn=False)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            self.asked.append(epoch)

    seen = Seen()
    found = trained(LightningCallback(seen), tmp_path, epochs=2)
    assert seen.asked == [0, 1]
    assert not found.ctx.model.body[0].weight.requires_grad


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (lambda: lightnings.ModelCheckpoint(), "checkpoint saves"),
        (lambda: lightnings.GradientAccumulationScheduler({0: 2}), r"accumulate=\.\.\."),
        (lambda: lightnings.RichProgressBar(), "progress shows"),
        (lambda: lightnings.ModelSummary(), "only Lightning knows"),
        (lambda: lightnings.LearningRateFinder(), "in the optimizer"),
        (lambda: lightnings.StochasticWeightAveraging(0.1), "ema averages"),
    ],
)
def test_what_cannot_run_here_is_refused_with_what_does_it(
    make: Callable[[], Any], instead: str
) -> None:
    with pytest.raises(HatbusError, match=f"cannot run here; .*{instead}"):
        LightningCallback(make())


def test_what_is_not_there_of_lightnings_trainer_is_named(tmp_path: Path) -> None:
    callback = lightnings.ThroughputMonitor(lambda batch: len(batch["x"]))
    with pytest.raises(HatbusError, match=r"ThroughputMonitor asks for trainer.precision_plugin"):
        trained(LightningCallback(callback), tmp_path)
