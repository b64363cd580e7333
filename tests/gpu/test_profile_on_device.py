"""The profile names the plugins that make the host wait for the GPU, and no others."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.on_device import DEVICE, trainer

from hatbus import callbacks, hookimpl
from hatbus.insight.profile import Profile

pytestmark = pytest.mark.needs_gpu
STEPS = 10


class Reads:
    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        losses["loss"].item()

    @hookimpl(wrapper=True)
    def forward(self, batch: Any) -> Generator[None, Any, Any]:
        outs = yield
        bool((outs > 0).any())
        return outs


class InBackground:
    """Reads in a thread of its own, while a step goes on: that holds up nobody."""

    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        thread = threading.Thread(target=lambda: losses["loss"].item())
        thread.start()
        thread.join()


def test_waits_are_counted_per_plugin_and_event(tmp_path: Path) -> None:
    plugins = {
        "reads": Reads(),
        "in_background": InBackground(),
        "cos_lr": callbacks.CosLrUpdater(),
        "ema": callbacks.ExponentialMovingAverage(),
        "grad_scale": callbacks.GradScale([("stem", 0.5)], clip_grad_norm=1.0),
        "grad_monitor": callbacks.GradMonitor(log_freq=5),
    }
    run, profile = trainer(plugins), Profile()
    profile.watch(run.bus)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        run.fit(num_steps=STEPS)
    waits = {key: cost.syncs for key, cost in profile.costs.items() if cost.syncs}
    assert waits == {
        ("reads", "on_step_end"): STEPS,
        ("reads", "forward"): STEPS,
        ("grad_monitor", "clip_gradients"): 2,
    }
    assert not [w for w in shown if "synchroniz" in str(w.message).lower()]
    assert torch.cuda.get_sync_debug_mode() == 0


JOB = """
[run]
entry = "train.py:build"
num_steps = 12
device = "cuda"
[plugins.cos_lr]
[plugins.ema]
[plugins.good]
use = "metric_updater"
metric_update_func = "train.py:update"
metrics = ["loss"]
[plugins.bad]
use = "metric_updater"
metric_update_func = "train.py:update_and_read"
metrics = ["loss"]
log_prefix = "bad"
"""

TRAIN = """
import torch
from torch import nn

def build():
    model = nn.Linear(8, 2)
    data = [(torch.randn(4, 8), torch.randn(4, 2))] * 6
    return model, torch.optim.SGD(model.parameters(), lr=0.1), data, nn.functional.mse_loss

def update(metrics, batch, model_outs, losses):
    metrics[0].update(losses["loss"])

def update_and_read(metrics, batch, model_outs, losses):
    metrics[0].update(losses["loss"].item())
"""


def test_the_command_shows_who_waits(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "train.py").write_text(textwrap.dedent(TRAIN))
    words = [sys.executable, "-m", "hatbus", "run", "job.toml", "--profile"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    waits = {tuple(row[:2]): row[6:] for row in rows if len(row) in (6, 7) and row[1][:3] == "on_"}
    assert waits["bad", "on_batch_end"] == ["12"], done.stdout
    assert waits["good", "on_batch_end"] == waits["cos_lr", "on_step_begin"] == []
    assert waits["ema", "on_optimizer_step_end"] == []
    assert "synchronizing" not in done.stderr
    assert DEVICE == "cuda"
