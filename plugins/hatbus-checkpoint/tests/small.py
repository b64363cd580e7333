"""A linear model with three steps an epoch, and plugins to go with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatbus import Trainer, hookimpl, plugin
from hatbus_checkpoint import Checkpoint
from hatbus_checkpoint.folder import CheckpointFolder

DATA = [(torch.ones(2, 3) * k, torch.ones(2, 1)) for k in range(1, 4)]


def tiny(path: Path, plugins: Any = None, **options: Any) -> Trainer:
    """Three steps an epoch of a linear model."""
    torch.manual_seed(0)
    model = options.pop("model", None) or nn.Linear(3, 1)
    run = {k: options.pop(k) for k in ("seed", "accumulate", "data") if k in options}
    lr = options.pop("lr", 0.01)
    checkpoint = Checkpoint(str(path), **options)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        run.pop("data", DATA),
        nn.functional.mse_loss,
        {"checkpoint": checkpoint, **(plugins or {})},
        **run,
    )


def names(path: Path) -> list[str]:
    return sorted(e.path.name for e in CheckpointFolder(path).entries())


def publishing(values: list[float], name: str = "val/acc") -> object:
    @plugin(stage="validate")
    class Publishes:
        @hookimpl
        def on_step_end(self, ctx: Any, global_step_id: int) -> None:
            ctx.log({name: torch.tensor(values[global_step_id])})

    return Publishes()


def counting(version: int, migrate: Callable[[Any, int], Any] | None = None) -> object:
    class Counts:
        state_version = version
        count = 0

        @hookimpl
        def on_step_end(self) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, int]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    if migrate is not None:
        Counts.migrate_state = staticmethod(migrate)  # type: ignore[attr-defined]
    return Counts()
