"""Runs that train the head of a net alone, and save only what changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatbus import Trainer, hookimpl, plugin
from hatbus_checkpoint import Checkpoint, manifest
from hatbus_checkpoint.folder import CheckpointFolder

sys.path.insert(0, str(Path(__file__).parent))
from runs import state_in

sys.path.pop(0)


class Net(nn.Module):
    """A frozen body with a buffer, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64).requires_grad_(False)
        self.norm = nn.BatchNorm1d(64, affine=False)
        self.register_buffer("table", torch.arange(640.0))
        self.head = nn.Linear(64, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(inputs)))


@plugin(stage="average")
class Average:
    """An average of all weights: that of the frozen ones is equal to them."""

    def __init__(self) -> None:
        self.averages: dict[str, torch.Tensor] = {}

    @hookimpl
    def on_loop_begin(self, model: nn.Module) -> None:
        self.averages = self.averages or {
            n: p.detach().clone() for n, p in model.named_parameters()
        }

    @hookimpl
    def on_step_end(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            self.averages[name].lerp_(parameter.detach(), 0.5)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": {n: t.clone() for n, t in self.averages.items()}, "bias": torch.ones(9)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averages = state["averages"]


@plugin(stage="train")
class Thaws:
    """Trains the body too, after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def on_step_begin(self, global_step_id: int, model: Any, optimizer: Any) -> None:
        if global_step_id >= self.step:
            model.body.requires_grad_(True)


def fine_tuning(path: Path, plugins: Any = None, **options: Any) -> Trainer:
    """Four steps an epoch."""
    torch.manual_seed(0)
    model = Net()
    data = [(torch.randn(4, 64), torch.randn(4, 1)) for _ in range(4)]
    options = {"interval_by": "step", "resume": "auto", "incremental": True, **options}
    return Trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        data,
        nn.functional.mse_loss,
        {"ema": Average(), "checkpoint": Checkpoint(str(path), **options), **(plugins or {})},
    )


def states_in(folder: Path) -> dict[str, str]:
    """Everything in every checkpoint, verified."""
    for path in newest_first(folder):
        manifest.verify(path)
    return {path.name: state_in(path) for path in newest_first(folder)}


def inodes(path: Path) -> set[int]:
    return {p.stat().st_ino for p in path.rglob("*.safetensors")}


def newest_first(folder: Path) -> list[Path]:
    return [e.path for e in CheckpointFolder(folder).entries()]
