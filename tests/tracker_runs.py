"""Runs of a tracker with its service's real client, in processes that are killed.

``python tests/tracker_runs.py PLUGIN OPTIONS FOLDER LAST`` trains 100 steps, with a checkpoint
every 20, and kills itself after the step ``LAST``, if there is such; ``OPTIONS`` is JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

STEPS = list(range(100))
ENDS = [24, 49, 74, 99]
"""The last steps of the epochs, in which one of each kind is published."""
NUMBERS = {"train/loss": STEPS, "n": STEPS, "val/epoch": ENDS}
"""Name to the steps in which it is published."""


def train(name: str, options: dict[str, Any], folder: Path, last: int) -> None:
    import torch
    from torch import nn

    from hatbus import Context, Trainer, callbacks, hookimpl, plugin
    from hatbus.discovery.first_party import FIRST_PARTY

    @plugin(stage="monitor")
    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            if ctx.exception is None:
                ctx.log({"train/loss": ctx.losses["loss"], "n": ctx.global_step_id})
                time.sleep(0.03)

        @hookimpl
        def on_epoch_end(self, ctx: Context) -> None:
            if ctx.exception is None:
                ctx.log({"val/epoch": ctx.epoch_id})
                ctx.log({"picture": torch.linspace(0, 1, 60).reshape(3, 4, 5)}, "image")
                ctx.log({"weights": ctx.model.weight}, "histogram")
                ctx.log({"note": f"epoch <{ctx.epoch_id}>"}, "text")

    @plugin(stage="report")
    class Dies:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            if ctx.global_step_id == last:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = torch.randn(25, 4, 3)
    model = nn.Linear(3, 1)
    saving = callbacks.Checkpoint(str(folder / "saved"), save_interval=20, interval_by="step")
    tracker = getattr(callbacks, FIRST_PARTY[name].class_name)(**options)
    Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        list(zip(inputs, inputs.sum(2, keepdim=True), strict=True)),
        nn.functional.mse_loss,
        {"publishes": Publishes(), "checkpoint": saving, name: tracker, "dies": Dies()},
        run_dir=folder / "runs",
        run_name="one",
        resume="auto",
        device="cpu",
    ).fit(num_epochs=4)


def trained(name: str, options: dict[str, Any], folder: Path, last: int = -1) -> str:
    """Trains in a process of its own; what it said."""
    words = [name, json.dumps(options), str(folder), str(last)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == (0 if last < 0 else -signal.SIGKILL), done.stdout + done.stderr
    return done.stdout + done.stderr


def killed_and_resumed(name: str, options: dict[str, Any], folder: Path) -> None:
    """Trains, with a kill early, one in the middle and one late."""
    for last in (3, 57, 93, -1):
        trained(name, options, folder, last)


def example_of(name: str, folder: Path) -> str:
    """Runs the example of a tracker's page, training included; what it said."""
    page = Path(__file__).parents[1] / f"docs/plugins/hatbus-{name}.md"
    code = page.read_text("utf-8").split("```python\n")[1].split("```")[0]
    command = [sys.executable, "-W", "ignore", "-c", f"{code}\ntrainer.fit(num_epochs=2)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def differences(found: dict[str, list[int]]) -> list[str]:
    """What is missing or there twice, of the steps that a service's reader found by name."""
    wrong = []
    for name, steps in NUMBERS.items():
        counts = Counter(found.get(name, ()))
        wrong += [f"{name} has no step {step}" for step in steps if not counts[step]]
        wrong += [f"{name} has step {step} {n} times" for step, n in counts.items() if n > 1]
        wrong += [f"{name} has a step {step}" for step in counts if step not in steps]
    return wrong


def holds(folder: Path, secret: str) -> list[str]:
    """The files below a folder that hold a text."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in files if secret.encode() in file.read_bytes()]


if __name__ == "__main__":
    train(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
