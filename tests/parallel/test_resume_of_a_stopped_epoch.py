"""What one of two processes asked for in a step that is saved is not lost by a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_trainer
from torch.utils.data import TensorDataset
from two_processes import run_on_two

from hatbus import hookimpl
from hatbus.callbacks import Checkpoint
from hatbus.data.loaders import loader

RESUMES = """
import json, sys
import test_resume_of_a_stopped_epoch as here

here.torch.set_num_threads(1)
rank = int(sys.argv[1])
seen = {"whole": here.rows("whole", rank)}
for after, served in here.SAVES:
    folder = f"{after}-{served}"
    first = here.rows(folder, rank, saves=after, served=served, num_steps=after)
    seen[folder] = first + here.rows(folder, rank, resume="auto")
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""
SAVES = [(3, False), (3, True), (4, False), (4, True), (5, False)]
"""After how many steps a run is saved, and whether it is by a request that all ranks agreed on."""


class Asks:
    """Rank 1 ends the first epoch after its third step, known to all one step later.

    A save is made in a step itself, or at its end when what ranks asked for is agreed.
    """

    def __init__(self, rank: int, saves: int | None, served: bool) -> None:
        self.rank, self.saves, self.served = rank, saves, served
        self.rows: list[Any] = []

    @hookimpl
    def on_step_end(self, ctx: Any, losses: Any) -> None:
        self.rows.append([ctx.epoch_id, ctx.step_id, ctx.global_step_id, losses["loss"].item()])
        if self.rank == 1 and ctx.global_step_id == 2:
            ctx.control.stop("epoch", "enough")
        if self.saves is not None and self.served and ctx.global_step_id + 2 == self.saves:
            ctx.control.save("agreed")
        if self.saves is not None and not self.served and ctx.global_step_id + 1 == self.saves:
            ctx.save("at once")


def rows(
    folder: str,
    rank: int,
    saves: int | None = None,
    served: bool = False,
    resume: str | None = None,
    **until: int,
) -> list[Any]:
    """Epoch, step and loss of every step; the run saves once, after ``saves`` steps."""
    inputs = torch.arange(96.0).reshape(32, 3) / 100
    data = loader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 2, seed=1)
    asks = Asks(rank, saves, served)
    checkpoint = Checkpoint(folder, save_interval=None, save_on_train_end=False, resume=resume)
    tiny_trainer({"asks": asks, "checkpoint": checkpoint}, data, seed=3).fit(
        **(until or {"num_epochs": 2})
    )
    return asks.rows


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What two processes saw, in a whole run and in two parts."""
    return run_on_two(RESUMES, tmp_path_factory.mktemp("stopped"), checkout)


@pytest.mark.parametrize(("after", "served"), SAVES)
def test_an_epoch_that_one_rank_stopped_is_over_in_the_same_step_after_a_resume(
    ranks: Any, after: int, served: bool
) -> None:
    for seen in ranks:
        assert [row[:2] for row in seen["whole"][:5]] == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]
        assert seen[f"{after}-{served}"] == seen["whole"]
