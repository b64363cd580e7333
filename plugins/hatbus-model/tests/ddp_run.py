"""A run of freezing, fusing and averaging that a test starts on one or two processes."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import nn

from hatbus import Trainer, hookimpl, plugin
from hatbus_model.ema import ExponentialMovingAverage
from hatbus_model.freeze_module import FreezeModule
from hatbus_model.fuse_bn import FuseBN


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Tanh())
        self.neck = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.stem(x))).mean((1, 2, 3))


@plugin(stage="setup")
class Replaces:
    """Puts new modules in, one of them in a frozen part, and tells nobody."""

    @hookimpl
    def on_step_begin(self, ctx: Any) -> None:
        torch.manual_seed(ctx.global_step_id)
        if ctx.global_step_id == 4:
            ctx.model.neck[0] = nn.Conv2d(4, 4, 1).double()
            ctx.optimizer.add_param_group({"params": list(ctx.model.neck.parameters())})
        if ctx.global_step_id == 6:
            ctx.model.head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 1, 1)).double()
            ctx.optimizer.add_param_group({"params": list(ctx.model.head.parameters())})


def main() -> None:
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    seeded = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    model = Net().double()
    data = [
        (torch.randn(4, 2, 3, 3, generator=seeded).double(), torch.randn(4, generator=seeded))
        for _ in range(18)
    ]
    mine = [(x.tensor_split(world)[rank], y.double().tensor_split(world)[rank]) for x, y in data]
    ema = ExponentialMovingAverage(0.8, 2)
    plugins = [
        Replaces(),
        FreezeModule([["stem"]], [0], "step", only_batchnorm=True),
        FreezeModule([["neck"]], [3], "step", unfreeze_at=[7]),
        FuseBN([["stem"]], [5], "step"),
        ema,
    ]
    named = {str(i): plugin for i, plugin in enumerate(plugins)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(model, optimizer, mine, nn.functional.mse_loss, named, accumulate=2)
    trainer.fit(num_epochs=1)
    state = {"model": model.state_dict(), "ema": ema.averages()}
    torch.save(state, f"{sys.argv[1]}-{rank}-of-{world}.pt")


if __name__ == "__main__":
    main()
