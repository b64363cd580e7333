"""A NaN gradient on one of two processes: both end, skip or go on alike, and save nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batches, tiny_trainer
from two_processes import run_on_two

from hatbus.callbacks import Checkpoint
from hatbus.errors import NonFiniteError

TRAINS = """
import json, sys
import test_finite_weights as here

here.torch.set_num_threads(1)
rank = int(sys.argv[1])
seen = {nan: here.trained(nan, rank) for nan in ("skip_step", "ignore", "raise")}
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


def trained(nan: str, rank: int) -> str:
    """How a run ends whose third step has a finite loss and a NaN gradient on rank 1."""
    count = iter(range(100))

    def loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        zero = torch.sqrt((outs - outs.detach()).square().sum())
        is_bad = next(count) == 2 and rank == 1
        return (outs - target).square().mean() + (zero if is_bad else 0)

    checkpoint = Checkpoint(nan, interval_by="step", save_hash=False)
    trainer = tiny_trainer([checkpoint], batches(5), loss=loss, nan=nan)
    try:
        ctx = trainer.fit(num_epochs=1)
    except NonFiniteError as error:
        return str(error).partition(" (")[0]
    return f"{ctx.updates} updates"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they save."""
    return tmp_path_factory.mktemp("finite")


@pytest.fixture(scope="module")
def ranks(folder: Path, checkout: Path) -> list[dict[str, Any]]:
    """How the runs of the two processes end."""
    return run_on_two(TRAINS, folder, checkout)


@pytest.mark.parametrize(
    ("nan", "ends", "saved"),
    [
        ("raise", "step 2 left parameter 'weight'", 2),
        ("skip_step", "4 updates", 5),
        ("ignore", "5 updates", 2),
    ],
)
def test_both_end_alike_and_only_finite_weights_are_saved(
    ranks: Any, folder: Path, nan: str, ends: str, saved: int
) -> None:
    assert [seen[nan] for seen in ranks] == [ends, ends]
    found = sorted(path.name for path in (folder / nan).glob("checkpoint-step-*/"))
    assert found == [f"checkpoint-step-{step}" for step in range(1, saved + 1)]
