"""Models with batch norms to fold, and trainers of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hatbus import Trainer


class Attributes(nn.Module):
    """A block whose order only its forward knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class Activated(nn.BatchNorm2d):
    """A batch norm with an activation in it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


class Named(nn.BatchNorm2d):
    """A batch norm by another name."""


def activated_by_hand() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    norm.forward = lambda x: nn.BatchNorm2d.forward(norm, x).relu()
    return norm


class Listed(nn.Module):
    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "sequential": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
    ),
    "without bias": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "module list": lambda: Listed(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
    "not affine": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)),
    "grouped": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, stride=2), nn.BatchNorm2d(4)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2), nn.BatchNorm2d(4)),
    "transposed, grouped": lambda: nn.Sequential(
        nn.ConvTranspose2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ),
    "subclass": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), Named(4)),
    "sync": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.SyncBatchNorm(4)),
}


class Net(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.head = block, nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x)).mean((1, 2, 3))


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seeded = torch.Generator().manual_seed(1)
    return [
        (torch.randn(3, 4, 6, 6, generator=seeded), torch.randn(3, generator=seeded))
        for _ in range(count)
    ]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def net(block: str = "sequential") -> Net:
    torch.manual_seed(0)
    model = Net(BLOCKS[block]())
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model


def trainer_of(
    model: nn.Module, *plugins: object, optimizer: str = "sgd", **more: object
) -> Trainer:
    made = OPTIMIZERS[optimizer](model.parameters())
    return Trainer(model, made, batches(), nn.functional.mse_loss, list(plugins), **more)
