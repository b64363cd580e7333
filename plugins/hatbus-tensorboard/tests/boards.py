"""Small runs, and what TensorBoard's own readers find in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from hatbus import Context, Trainer, hookimpl, plugin

torch.set_num_threads(1)
KINDS = ("scalars", "tensors", "images", "histograms")


def batches(count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, 3, generator=chance)
    return list(zip(inputs, inputs.sum(dim=2, keepdim=True), strict=True))


def trainer(*plugins: object, data: Any = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = options.pop("model", None) or nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = options.pop("loss", nn.functional.mse_loss)
    return Trainer(model, optimizer, data or batches(4), loss, plugins, **options)


class Losses:
    """The losses as they were."""

    def __init__(self) -> None:
        self.values: list[float] = []

    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        self.values.append(float(losses["loss"].detach()))


@plugin(stage="monitor")
class Logs:
    """Publishes one of each kind, at the end of each epoch."""

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        ctx.log({"val/accuracy": torch.tensor(0.5), "lr": 0.1, "count": 3})
        ctx.log({"a": torch.rand(3, 8, 8), "b": torch.rand(8, 8)}, "image")
        ctx.log({"weights": ctx.model.weight}, "histogram")
        ctx.log({"note": "all is well"}, "text")


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance=dict.fromkeys(KINDS, 0))
    found.Reload()
    return found


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in read(folder).Scalars(tag)]


def raw_steps(folder: Path, tag: str) -> list[int]:
    """Steps as they stand in the files, purged ones too."""
    return [
        event.step
        for file in sorted(folder.iterdir())
        for event in EventFileLoader(str(file)).Load()
        if any(value.tag == tag for value in event.summary.value)
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from boards import Logs, trainer
from hatbus import hookimpl, plugin
from hatbus_tensorboard.tensorboard import TensorBoard

@plugin(stage="checkpoint")
class Saves:
    @hookimpl
    def on_step_end(self, ctx):
        if ctx.global_step_id == 6:
            ctx.save("step 6")
    @hookimpl
    def save_checkpoint(self):
        return True

class Dies:
    @hookimpl
    def on_step_begin(self, global_step_id):
        if global_step_id == 9:
            os.kill(os.getpid(), signal.SIGKILL)

trainer(TensorBoard(sys.argv[2], flush_secs=1000), Saves(), Logs(), Dies()).fit(num_epochs=3)
"""


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"det": nn.Linear(3, 1), "seg": nn.Linear(3, 1)})

    def forward(self, inputs: torch.Tensor, task: str) -> torch.Tensor:
        return self.heads[task](inputs)


@plugin(stage="checkpoint")
class Resumes:
    """Puts the counters where a checkpoint would."""

    def __init__(self, epoch: int, step: int) -> None:
        self.place = epoch, step

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        ctx.position.epoch, ctx.position.step = self.place
        ctx.position.global_step = self.place[0] * 4 + self.place[1]
