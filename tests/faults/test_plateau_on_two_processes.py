"""A plateau that follows a loss which every process has of its own gives all of them one lr."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from two_processes import run_on_two

PLAYS = """
import json, sys
import torch
from hatbus import hookimpl
from hatbus.callbacks import TorchLr
from tiny import batches, tiny_trainer

torch.set_num_threads(1)
rank, seen = int(sys.argv[1]), []


class Publishes:
    @hookimpl
    def on_epoch_end(self, ctx, epoch_id):
        if rank == 0 or epoch_id % 2:  # one process alone has a value too
            ctx.log({"own": float(epoch_id * rank)})

    @hookimpl
    def on_epoch_begin(self, optimizer):
        seen.append(optimizer.param_groups[0]["lr"])


plateau = TorchLr("ReduceLROnPlateau", {"patience": 0}, "epoch", metric="own")
tiny_trainer([Publishes(), plateau], batches(2, seed=rank)).fit(num_epochs=5)
with open(f"rank-{rank}.json", "w") as file:
    json.dump({"lr": seen}, file)
"""


def test_every_process_has_the_lr_of_the_mean(tmp_path: Path, checkout: Path) -> None:
    first, second = run_on_two(PLAYS, tmp_path, checkout)
    assert first == second
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], first["lr"][0])
    scheduler = ReduceLROnPlateau(optimizer, patience=0)
    expected = [first["lr"][0]]
    for mean in (0.0, 0.5, 0.0, 1.5):
        optimizer.step()
        scheduler.step(mean)
        expected.append(optimizer.param_groups[0]["lr"])
    assert first["lr"] == expected
