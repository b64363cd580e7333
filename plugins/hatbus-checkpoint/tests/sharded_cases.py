"""A model that is spread over processes, or not, saved and resumed on as many or on others."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset
from worlds import world

from hatbus import Trainer, data, hookimpl, plugin, rng
from hatbus.callbacks import Checkpoint, ExponentialMovingAverage, MeanTeacher
from hatbus.parallel import full_tensor
from hatbus_checkpoint import InitFrom

GLOBAL_BATCH = 8
STEPS, STOP = 7, 4


class Net(nn.Module):
    """Tensors with fewer rows than processes, with odd numbers of rows, tied ones, buffers.

    Args:
        tied: whether two of its tensors are one.
    """

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2))
        width = 5 if tied else 6  # odd numbers of rows, and even ones
        self.one, self.other = nn.Linear(5, width), nn.Linear(width, 5)
        if tied:
            self.other.weight = self.one.weight
        self.head = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.other(self.one(self.stem(x))))


class Pair(nn.Module):
    """A student and its teacher."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.student, self.teacher = Net(tied=tied), Net(tied=tied)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student(x)


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
    """Spreads a model over the processes, by rows; or over half of them, and that twice."""
    size = distributed.get_world_size()
    names = ("r", "s") if how == "hsdp" else ("s",)
    shape = (size,) if how == "fsdp" else (2, size // 2)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for net in (model.student, model.teacher):
        for part in (net.stem, net.head, net):
            fully_shard(part, mesh=mesh)


def trainer_of(path: Path, how: str, looks: Looks, **options: Any) -> Trainer:
    """A run over all processes of this world.

    Args:
        path: of the checkpoints.
        how: ``"fsdp"``, ``"hsdp"`` or ``"ddp"``, which is a plain one where there is one
            process; with ``u`` before it no tensors are tied, with ``half`` it is in fp16.
        looks: a plugin that looks.
        options: of the checkpoint.
    """
    size = int(os.environ["WORLD_SIZE"])
    rng.seed_all(0)
    model = Pair(tied=not how.startswith("u"))
    in_half, how = how.startswith("half"), how.removeprefix("u").removeprefix("half")
    kind = torch.float32 if in_half else torch.float64
    model.to(kind)
    if how != "ddp":
        distributed.init_process_group("gloo")
        spread(model, how)
    drawn = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 3, generator=drawn, dtype=torch.float64).to(kind)
    loader = data.loader(
        TensorDataset(inputs, inputs.sum(1, keepdim=True)), GLOBAL_BATCH // size, seed=1
    )
    plugins: dict[str, Any] = {"looks": looks, "ema": ExponentialMovingAverage(0.8, 2)}
    plugins["mean_teacher"] = MeanTeacher(0.7, 2)
    saves = {"interval_by": "step", "save_interval": 3, "resume": "auto", **options}
    plugins["checkpoint"] = Checkpoint(str(path), **saves)
    optimizer = torch.optim.Adam(model.student.parameters(), lr=0.01)
    run = {"seed": 3, "precision": "fp16" if in_half else "fp32"}
    return Trainer(model, optimizer, loader, nn.functional.mse_loss, plugins, **run)


def train(path: Path, how: str, steps: int, rank: int, name: str = "", **options: Any) -> None:
    """Trains until so many steps are over; leaves what it found at its first step."""
    looks = Looks()
    trainer_of(path, how, looks, **options).fit(num_steps=steps)
    if name:
        found = {"state": looks.state, "losses": looks.losses}
        torch.save(found, path / f"{name}-{rank}.pt")


def go(kind: str, path: Path, steps: int, name: str = "", **options: Any) -> list[int]:
    """The same on so many processes as ``kind``, such as ``"fsdp-2"``, says."""
    path.mkdir(parents=True, exist_ok=True)
    how, size = kind.split("-")
    return world(int(size), partial(_train, path, how, steps, name, options), 200)


def _train(path: Path, how: str, steps: int, name: str, options: dict[str, Any], rank: int) -> None:
    train(path, how, steps, rank, name, **options)


def begun(source: Path, rank: int) -> None:
    """Leaves the weights of a model that was spread and then begins with those of a checkpoint."""
    rng.seed_all(1)
    distributed.init_process_group("gloo")
    model = Pair(tied=True).double()
    spread(model, "fsdp")
    InitFrom(source, strict=True)(model)
    weights = {name: full_tensor(value) for name, value in model.state_dict().items()}
    torch.save(weights, source / f"begun-{rank}.pt")


def damaged(source: Path, path: Path) -> Path:
    """A copy of a run's checkpoints, of which a part in the newest has a wrong bit."""
    shutil.copytree(source, path)
    file = sorted(path.glob("checkpoint-*/rank-1/optim.safetensors"))[-1]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return path


def main(folder: Path, cases: list[str]) -> None:
    """Does the cases and prints the exit codes; ``HOW-SIZE:HOW-SIZE`` is a resume.

    ``begun:HOW-SIZE`` begins with what the run ``HOW-SIZE`` has saved; ``damaged:HOW-SIZE`` goes on
    with that, but its newest checkpoint is damaged; ``whole:HOW-SIZE`` does not stop, and saves in
    the background.
    """
    codes: dict[str, list[int]] = {}
    for case in cases:
        first, _, then = case.partition(":")
        place = folder / case.replace(":", "-to-")
        if first == "begun":
            codes[case] = world(2, partial(begun, folder / then))
        elif first == "damaged":
            codes[case] = go(then, damaged(folder / then, folder / f"damaged-{then}"), STEPS)
        elif first == "whole":
            codes[case] = go(then, folder / f"whole-{then}", STEPS, "found", async_save=True)
        else:
            if not (folder / first).exists():
                codes[first] = go(first, folder / first, STOP)
            source = sorted((folder / first).glob("checkpoint-*/"))[-1]
            resume = {"resume": str(source), "override": ["all"]}
            codes[case] = go(then, place, STEPS, "found", **resume)
    print(json.dumps(codes), flush=True)
