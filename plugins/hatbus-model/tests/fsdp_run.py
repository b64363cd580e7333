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
from hatbus_model.mean_teacher import MeanTeacher


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.neck = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.stem(x)))


class Part(nn.Module):
    """Has buffers, and a parameter with fewer rows than there are processes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * self.scale


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Part(), Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student(x)


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


def sharded(model: nn.Module, parts: list[nn.Module], device: str) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    for module in (*parts, model):
        fully_shard(module, mesh=mesh)
    return model


def trained(model: nn.Module, plugins: list[object], device: str) -> dict[str, Any]:
    """Trains it; the weights at the end."""
    seeded = torch.Generator().manual_seed(distributed.get_rank() + 1)
    draw = {"generator": seeded, "dtype": torch.float64}
    data = [(torch.randn(4, 6, **draw), torch.randn(4, 4, **draw)) for _ in range(8)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = nn.functional.mse_loss
    Trainer(model, optimizer, data, loss, plugins, accumulate=2, device=device).fit(num_epochs=3)
    return {name: full_tensor(p).detach().cpu() for name, p in model.named_parameters()}


def averages(ema: ExponentialMovingAverage) -> dict[str, torch.Tensor]:
    return {name: full_tensor(value).detach().cpu() for name, value in ema.averages().items()}


def main(how: str, path: str, device: str = "cpu") -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    torch.manual_seed(0)
    model, pair = Net().double().to(device), Pair().double().to(device)
    if how == "fsdp":
        sharded(model, [model.stem, model.neck], device)
        sharded(pair, [pair.student, pair.teacher], device)
    ema, looks = ExponentialMovingAverage(0.8, 2), Looks()
    freeze = FreezeModule([["neck"]], [2], "step", unfreeze_at=[5])
    state = {"model": trained(model, [freeze, ema, looks], device), "ema": averages(ema)}
    late = ExponentialMovingAverage(0.8, 2, start_step=3)
    state |= {"pair": trained(pair, [MeanTeacher(0.8, 2), late], device), "late": averages(late)}
    state |= {"looks": looks.found, "kind": looks.kind}
    torch.save(state, f"{path}-{how}-{distributed.get_rank()}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
    os._exit(0)  # threads of a group that something still holds may be aborted at the end
