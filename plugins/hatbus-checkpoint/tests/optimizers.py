"""A run of any optimizer that is stopped twice inside an epoch, beside one that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatbus import Trainer, hookimpl, rng
from hatbus_checkpoint import Checkpoint
from hatbus_checkpoint.folder import CheckpointFolder

Make = Callable[[nn.Module], Any]
STEPS = 6
"""Of an epoch; the stops come after step 9 and 16 of 24."""


class Stop(Exception):  # noqa: N818 - no error
    """Ends a run as a crash would."""


class StopAt:
    """Ends the run at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == self.step:
            raise Stop


class Closure:
    """Gives the optimizer's step a function that computes the step's loss and gradients again."""

    @hookimpl
    def optimizer_step(self, ctx: Any) -> bool:
        @torch.enable_grad()
        def closure() -> torch.Tensor:
            ctx.optimizer.zero_grad()
            inputs, target = ctx.batch
            loss = nn.functional.mse_loss(ctx.model(inputs), target)
            loss.backward()
            return loss

        closure()
        ctx.optimizer.step(closure)
        return True


class Sparse:
    """Makes the gradients sparse."""

    @hookimpl
    def on_backward_end(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad = parameter.grad.to_sparse()


def hidden() -> nn.Module:
    """A model with matrices of some size and vectors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )


def matrices() -> nn.Module:
    """A model with matrices only."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 1, bias=False))


def trial(
    path: Path, make: Make, *plugins: object, model: Callable[[], nn.Module] = hidden
) -> None:
    """Fails where a run that was stopped twice does not end with the same bytes."""
    chance = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(4, 8, generator=chance), torch.randn(4, 1, generator=chance))
        for _ in range(STEPS)
    ]

    def fit(folder: str, stop: int, resume: str | None = None) -> None:
        rng.seed_all(0)
        built = model()
        every = {"save_interval": 1, "interval_by": "step", "keep_last": 2}
        checkpoint = Checkpoint(str(path / folder), resume=resume, **every)
        listed = [*plugins, StopAt(stop), checkpoint]
        trainer = Trainer(built, make(built), data, nn.functional.mse_loss, listed)
        try:
            trainer.fit(num_epochs=4)
        except Stop:
            assert trainer.ctx.position.global_step == stop + 1

    fit("whole", 99)
    fit("parts", 9)
    fit("parts", 16, "auto")
    fit("parts", 99, "auto")
    whole, parts = (last_files(path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if whole[name] != parts[name]] == []
    assert {"model.safetensors", "optim.json"} <= whole.keys()


def last_files(folder: Path) -> dict[str, str]:
    """The hashes of the files of the newest checkpoint of a run, which has to be its last step."""
    found = CheckpointFolder(folder).latest()
    assert found is not None
    assert found.manifest["progress"]["global_step"] == 4 * STEPS
    return {name: file["sha256"] for name, file in found.manifest["files"].items()}
