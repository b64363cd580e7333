"""The smallest real run there is: a net, its batches, and a trainer of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hatbus import Trainer, rng

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class TinyNet(nn.Module):
    """Two linear layers: (n, 3) to (n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The prediction."""
        found: torch.Tensor = self.head(torch.tanh(self.body(inputs)))
        return found


def batches(count: int = 4, size: int = 4, *, seed: int = 0) -> Batches:
    """``count`` batches ``(inputs (size, 3), targets (size, 1))``, the same for the same seed."""
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, size, 3, generator=chance)
    return list(zip(inputs, inputs.sum(dim=2, keepdim=True).sin(), strict=True))


def tiny_parts() -> dict[str, Any]:
    """Model, optimizer, data and loss of a tiny run, as a job's entry function returns them."""
    model = TinyNet()
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "data": batches(),
        "loss": nn.functional.mse_loss,
    }


def tiny_trainer(plugins: Sequence[object] | Mapping[str, object] = (), **options: Any) -> Trainer:
    """A trainer of a tiny run, with the same weights and random state every time.

    Args:
        plugins: as for ``hatbus.Trainer``.
        options: what ``hatbus.Trainer`` takes, in place of ``tiny_parts``. A ``model`` of your own
            gets an optimizer of its own.
    """
    rng.seed_all(0)
    parts = tiny_parts()
    if "model" in options and "optimizer" not in options:
        parameters = options["model"].parameters()
        parts["optimizer"] = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    return Trainer(**{**parts, "plugins": plugins, **options})
