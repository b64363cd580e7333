"""A model that is spread over processes, or not, saved and resumed on as many or on others."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp
from torch import distributed, nn
from torch.utils.data import TensorDataset
from worlds import alone, world

from hatbus import Trainer, data, hookimpl, plugin, rng
from hatbus.callbacks import Checkpoint, ExponentialMovingAverage
from hatbus.parallel import full_tensor

GLOBAL_BATCH = 8
STEPS, STOP = 7, 4


class Net(nn.Module):
    """Tensors with fewer rows than processes, with odd numbers of rows, tied ones, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2))
        self.one, self.other = nn.Linear(5, 5), nn.Linear(5, 5)
        self.other.weight = self.one.weight
        self.head = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.other(self.one(self.stem(x))))


@plugin(stage="setup", everywhere=True)
class Looks:
    """What the run has after a resume, whole, and its losses."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.losses: list[float] = []

    @hookimpl
    def on_step_begin(self, ctx: Any) -> None:
        if self.state:
            return
        ema = ctx.bus.members["ema"].plugin
        names = {p: n for n, p in ctx.model.named_parameters()}
        held = {names[p]: s for p, s in ctx.optimizer.state.items()}
        named = {f"model/{n}": v for n, v in ctx.model.state_dict().items()}
        named |= {f"optim/{n}/{k}": v for n, s in held.items() for k, v in s.items()}
        named |= {f"ema/{n}": v for n, v in ema.averages().items()}
        self.state = {n: full_tensor(v).detach().clone() for n, v in named.items()}

    @hookimpl
    def on_step_end(self, losses: Any) -> None:
        self.losses.append(sum(value.item() for value in losses.values()))


def spread(model: nn.Module, how: str) -> None:
    """Spreads a model over the processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    size = distributed.get_world_size()
    shape = (2, size // 2) if how == "hsdp" else (size,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("r", "s")[-len(shape) :])
    for part in (model.stem, model.head, model):
        fully_shard(part, mesh=mesh)


def trainer_of(path: Path, how: str, looks: Looks, **options: Any) -> Trainer:
    """A run over all processes of this world.

    Args:
        path: of the checkpoints.
        how: ``"fsdp"``, ``"hsdp"`` or ``"ddp"``, which is a plain one where there is one process.
        looks: a plugin that looks.
        options: of the checkpoint.
    """
    import os

    size = int(os.environ["WORLD_SIZE"])
    rng.seed_all(0)
    model = Net().double()
    if how != "ddp":
        distributed.init_process_group("gloo")
        spread(model, how)
    drawn = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 3, generator=drawn, dtype=torch.float64)
    loader = data.loader(
        TensorDataset(inputs, inputs.sum(1, keepdim=True)), GLOBAL_BATCH // size, seed=1
    )
    kind = options.pop("optimizer", torch.optim.Adam)
    plugins: dict[str, Any] = {"looks": looks, "ema": ExponentialMovingAverage(0.8, 2)}
    saves = {"interval_by": "step", "save_interval": 3, "resume": "auto", **options}
    plugins["checkpoint"] = Checkpoint(str(path), **saves)
    optimizer = kind(model.parameters(), lr=0.01)
    return Trainer(model, optimizer, loader, nn.functional.mse_loss, plugins, seed=3)


def train(path: Path, how: str, steps: int, rank: int, name: str = "", **options: Any) -> None:
    """Trains until so many steps are over; leaves what it found at its first step."""
    looks = Looks()
    trainer_of(path, how, looks, **options).fit(num_steps=steps)
    if name:
        found = {"state": looks.state, "losses": looks.losses}
        torch.save(found, path / f"{name}-{rank}.pt")


def go(size: int, path: Path, how: str, steps: int, name: str = "", **options: Any) -> list[int]:
    """The same on so many processes."""
    path.mkdir(parents=True, exist_ok=True)
    work = partial(_train, path, how, steps, name, options)
    return world(size, work) if size > 1 else [alone(work)]


def _train(path: Path, how: str, steps: int, name: str, options: dict[str, Any], rank: int) -> None:
    train(path, how, steps, rank, name, **options)


def main(folder: Path, cases: list[str]) -> None:
    """Does the cases and prints the exit codes: ``HOW-SIZE`` or ``HOW-SIZE:HOW-SIZE``, a resume."""
    codes: dict[str, list[int]] = {}
    for case in cases:
        first, _, then = case.partition(":")
        how, size = first.split("-")
        path = folder / first
        options = {"async_save": True} if how.startswith("async") else {}
        if not path.exists():
            codes[first] = go(int(size), path, how.removeprefix("async"), STOP, **options)
        if then:
            source = sorted(path.glob("checkpoint-*/"))[-1]
            how, size = then.split("-")
            place = folder / case.replace(":", "-to-")
            resume = {"resume": str(source), "override": ["all"]}
            codes[case] = go(int(size), place, how, STEPS, "found", **resume)
        else:
            codes[case] = go(int(size), path / "whole", how.removeprefix("async"), STEPS, "found")
    print(json.dumps(codes), flush=True)
