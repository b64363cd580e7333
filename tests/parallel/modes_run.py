"""One model, three tasks and many plugins, by every way of sharing the model."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from hatbus import Trainer, hookimpl
from hatbus.callbacks import (
    Checkpoint,
    ExponentialMovingAverage,
    FreezeModule,
    GradClip,
    GradScale,
    Validation,
)
from hatbus.data import loader
from hatbus.errors import HatbusError
from hatbus.parallel import Parallel, full_tensor, local_tensor
from hatbus.parallel.modes.blocks import blocks_of
from hatbus.parallel.modes.materialise import materialise

TASKS = ("a", "b", "c")
STEPS = 4
COUNT = [0]
FEWER_DIGITS: dict[str, dict[str, Any]] = {
    "bf16": {"param_dtype": "bf16"},
    "bf16, exchanged in fp32": {"param_dtype": "bf16", "reduce_dtype": "fp32"},
    "exchanged in bf16": {"reduce_dtype": "bf16"},
}


def counting() -> None:
    """Counts the exchanges of gradients of shards."""
    for name in ("reduce_scatter_single", "reduce_scatter_tensor"):  # as versions of torch call it
        exchange = getattr(distributed, name, None)
        if exchange is not None:
            setattr(distributed, name, partial(counted, exchange))


def counted(exchange: Any, *args: Any, **kwargs: Any) -> Any:
    COUNT[0] += 1
    return exchange(*args, **kwargs)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm = nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.norm(self.line(x)).tanh())


class Net(nn.Module):
    """Three blocks, and a head of one row per task."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.heads = nn.ModuleDict({task: nn.Linear(6, 1) for task in TASKS})

    def forward(self, x: torch.Tensor, task: str) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.heads[task](x)


class Notes:
    """Losses, values of validations, and how often gradients were exchanged in each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.scattered: list[int] = []
        self.validated: list[float] = []

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self) -> Any:
        before = COUNT[0]
        result = yield
        self.scattered.append(COUNT[0] - before)
        return result

    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        self.losses += [value.item() for value in losses.values()]

    @hookimpl
    def on_validation_end(self, ctx: Any) -> None:
        self.validated += [float(v) for n, v in sorted(ctx.latest.items()) if n.startswith("val")]


def data_of(task: str, size: int = 4) -> Any:
    chance = torch.Generator().manual_seed(TASKS.index(task))
    x = torch.randn(32, 6, generator=chance)
    return loader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), size)


class FirstWeights:
    """The whole weights before the first step."""

    found: Any = None

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        if self.found is None:
            self.found = whole(ctx.model)


def whole(model: nn.Module) -> list[float]:
    """All parameters of a model in one row."""
    parts = (full_tensor(p).detach().flatten() for p in model.parameters())
    return torch.cat(list(parts)).tolist()


def trained(parallel: Any, on: str = "cpu", ends: Any = (2, STEPS), **more: Any) -> dict[str, Any]:
    """What one way of sharing it comes to.

    Args:
        parallel: the way.
        on: where the model is built.
        ends: numbers of steps after which a fit ends.
        more: of the trainer; ``plugins`` besides those of all.
    """
    torch.manual_seed(1)
    with torch.device(on):
        model = Net()
    notes, first = Notes(), FirstWeights()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    ema = ExponentialMovingAverage(0.8, 2, start_step=1)
    plugins = [
        notes,
        first,
        ema,
        GradClip(0.3),
        FreezeModule([["blocks.0"]], [2], "step"),
        Validation({"a": data_of("a", 16)}),
        *more.pop("plugins", ()),
    ]
    trainer = Trainer(
        model,
        optimizer,
        {task: data_of(task) for task in TASKS},
        nn.functional.mse_loss,
        plugins,
        accumulate=2,
        parallel=parallel,
        device="cpu",
        **more,
    )
    for end in ends:
        trainer.fit(num_steps=end)
    return {
        "first": first.found,
        "losses": notes.losses,
        "validated": notes.validated,
        "scattered": notes.scattered,
        "local": sum(local_tensor(p).numel() for p in model.parameters()),
        "weights": whole(model),
        "buffers": torch.cat([b.double().flatten() for b in model.buffers()]).tolist(),
        "averages": [full_tensor(v).double().sum().item() for v in ema.averages().values()],
    }


def resumed(parallel: Any, folder: str) -> dict[str, Any]:
    """The same, ended after two steps and gone on with from a checkpoint by another trainer."""
    options = {"save_dir": folder, "interval_by": "step", "save_interval": 2}
    trained(parallel, ends=[2], plugins=[Checkpoint(**options)])
    return trained(parallel, ends=[STEPS], plugins=[Checkpoint(**options, resume="last")])


def refused(parallel: Parallel) -> str:
    """What is said of an option that the device does not have."""
    try:
        trained(parallel, ends=[1])
    except HatbusError as error:
        return str(error)
    return "nothing"


def by_hand(blocks: list[str]) -> list[float]:
    """The first weights of a model built on the meta device, in one process."""
    torch.manual_seed(1)
    with torch.device("meta"):
        model = Net()
    for _, block in [*blocks_of(model, Parallel("fsdp2", blocks=blocks)), ("", model)]:
        materialise(block, torch.device("cpu"))
    return whole(model)


def main(path: str) -> None:
    torch.set_num_threads(1)
    counting()
    world = int(os.environ["WORLD_SIZE"])
    every = ["Block", "heads.*"]
    scaled = {"plugins": [GradScale([("blocks", 0.5, "b"), ("heads", 2.0, "c")])]}
    found = {"ddp": trained("ddp"), "ddp scaled": trained(None, **scaled)}
    if world == 2:
        found["views"] = trained(Parallel(bucket_views=True, find_unused=True))
        found["root"] = trained(Parallel("fsdp2", reshard_after_forward=False))
        found["blocks"] = trained(Parallel("fsdp2", blocks=every))
        found["scaled"] = trained(Parallel("fsdp2", blocks="blocks.*"), **scaled)
        found["resumed"] = resumed(Parallel("fsdp2", blocks=every), f"{path}-checkpoints")
        found["meta"] = trained(Parallel("fsdp2", blocks=every), "meta")
        found["meta"]["by hand"] = by_hand(every)
        for name, options in FEWER_DIGITS.items():
            found[name] = trained(Parallel("fsdp2", blocks=every, **options))
        found["refused"] = [refused(Parallel("fsdp2", offload=True))]
        found["refused"] += [refused(Parallel(sync_batchnorm=True))]
    else:
        found["meta"] = trained(Parallel("fsdp2", blocks=every), "meta")
        found["meta"]["by hand"] = by_hand(every)
        found["blocks"] = trained(Parallel("fsdp2", blocks=every))
        found["hsdp"] = trained(Parallel("hsdp", mesh=[2, 2], blocks=every))
        found["scaled"] = trained(Parallel("hsdp", mesh=[2, 2], blocks=every), **scaled)
    Path(f"{path}-{os.environ['RANK']}.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
