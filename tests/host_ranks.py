"""A run in a host over two processes, by torchrun: `host_ranks.py HOST FOLDER`.

Each host shares out the data in its own way; `hatbus:HOST` is hatbus's Trainer with the same
shares.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import host_loops as loops
import host_nine
import torch
from torch import distributed

from hatbus import Context, hookimpl, plugin

EPOCHS, ASKS_AT = 2, 5


@plugin(stage="report")
class AsksOnLast:
    """Asks for the end on the last process alone."""

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        if ctx.rank == ctx.world_size - 1 and ctx.global_step_id == ASKS_AT:
            ctx.control.stop("run", "enough here")


def plugins(folder: Path) -> dict[str, Any]:
    """The nine but ``freeze_module``: no host makes its DDP wrapper anew; and one that asks."""
    found = host_nine.nine(folder)
    del found["freeze_module"]
    return {**found, "asks": AsksOnLast()}


def shares(host: str) -> list[Any]:
    """This process's batches as a host shares them out: every second sample, or batch."""
    rank = distributed.get_rank()
    if host in ("lightning", "ignite"):
        return list(loops.new_loader(data=loops.samples()[rank::2]))
    return list(loops.new_loader())[rank::2]


def in_hatbus(host: str, model: Any, found: dict[str, Any]) -> Any:
    from hatbus import Trainer

    trainer = Trainer(model, loops.new_optimizer(model), shares(host), plugins=found, device="cpu")
    trainer.fit(num_epochs=EPOCHS)
    return trainer.ctx


def main(host: str, folder: Path) -> None:
    torch.set_num_threads(1)
    model, found = loops.new_model(), plugins(folder)
    kind, _, of = host.partition(":")
    if kind in ("hatbus", "ignite"):
        distributed.init_process_group("gloo")
    if kind == "hatbus":
        ctx = in_hatbus(of, model, found)
    elif kind == "lightning":
        options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
        data = loops.new_loader(data=loops.samples()[int(os.environ["RANK"]) :: 2])
        ctx = loops.in_lightning(model, found, EPOCHS, trainer=options, batches=data).ctx
    elif kind == "transformers":
        ctx = loops.in_transformers(model, found, EPOCHS, folder=folder / "out").ctx
    elif kind == "ignite":
        shared = torch.nn.parallel.DistributedDataParallel(model)
        data = shares(host)
        ctx = loops.in_ignite(model, found, EPOCHS, called=shared, batches=data).ctx
    else:
        ctx = loops.in_accelerate(model, found, EPOCHS).ctx
    left = {"weights": dict(model.state_dict())}
    if ctx.rank == 0:  # where those who write do so
        left = host_nine.what_is_left(model, found, folder)
    left |= {"steps": ctx.position.global_step, "world": ctx.world_size}
    torch.save(left, folder / f"{ctx.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
