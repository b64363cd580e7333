"""A run on two processes by DDP or FSDP2, with everything that follows weights."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import distributed, nn

from hatbus import Trainer, hookimpl
from hatbus.parallel import full_tensor
from hatbus_model.ema import ExponentialMovingAverage
from hatbus_model.freeze_module import FreezeModule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.neck = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.stem(x)))


class Looks:
    """The loss of fixed inputs under raw and averaged weights, after every epoch."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self.inputs = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(8, 6)

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        self.kind = type(ctx.wrapped_model).__name__
        for view in ("ema", "raw"):
            with ctx.weights.showing(view), torch.no_grad():
                outputs = ctx.model(self.inputs.to(ctx.device))
                self.found.append(outputs.square().mean().item())


def main(how: str, path: str, device: str = "cpu") -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = Net().double().to(device)
    if how == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device, (distributed.get_world_size(),))
        for module in (model.stem, model.neck, model):
            fully_shard(module, mesh=mesh)
    seeded = torch.Generator().manual_seed(rank + 1)
    draw = {"generator": seeded, "dtype": torch.float64}
    data = [(torch.randn(4, 6, **draw), torch.randn(4, 4, **draw)) for _ in range(8)]
    ema, looks = ExponentialMovingAverage(0.8, 2), Looks()
    freeze = FreezeModule([["neck"]], [2], "step", unfreeze_at=[5])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = Trainer(
        model,
        optimizer,
        data,
        nn.functional.mse_loss,
        [freeze, ema, looks],
        accumulate=2,
        device=device,
    )
    trainer.fit(num_epochs=3)
    state = {
        "model": {name: full_tensor(p).detach().cpu() for name, p in model.named_parameters()},
        "ema": {name: full_tensor(value).detach().cpu() for name, value in ema.averages().items()},
        "looks": looks.found,
        "kind": looks.kind,
    }
    torch.save(state, f"{path}-{how}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
