"""Fifty steps of the examples on two processes: losses as one process has them, to 1e-5.

Batch norm and dropout depend on what each process has, so they are taken out; with them the first
losses still agree to what statistics of half a batch leave.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from two_processes import run_on_two

from hatbus import Trainer, hookimpl

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
STEPS, BATCH = 50, 28
"""No epoch ends within: of a last batch that two cannot share evenly, each part counts alike."""
RUNS = """
import json, sys
import test_two_against_one as here

rank = int(sys.argv[1])
seen = {name: here.losses(name, here.BATCH // 2) for name in ("digits", "multitask")}
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


class Published:
    """The mean loss of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    @hookimpl
    def on_log(self, logs: Any) -> None:
        self.found += [float(value) for name, value in logs.items() if name.endswith("loss_step")]


def losses(example: str, batch_size: int) -> list[float]:
    """What an example publishes in its first steps."""
    torch.manual_seed(0)
    parts = runpy.run_path(str(EXAMPLES / example / "train.py"))["build"](batch_size)
    plain(parts["model"])
    parts["optimizer"] = torch.optim.SGD(parts["model"].parameters(), lr=0.01, momentum=0.9)
    known = {"model", "optimizer", "data", "loss", "task_sampler"}
    given = {name: part for name, part in parts.items() if name in known}
    published = Published()
    Trainer(**given, plugins=[published], device="cpu", log_every=1).fit(num_steps=STEPS)
    return published.found


def plain(module: nn.Module) -> None:
    """Takes batch norm and dropout out."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        elif isinstance(child, nn.Dropout):
            child.p = 0.0
        else:
            plain(child)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What both processes published."""
    return run_on_two(RUNS, tmp_path_factory.mktemp("two"), checkout)


@pytest.mark.parametrize("example", ["digits", "multitask"])
def test_losses_are_those_of_one_process(example: str, ranks: Any) -> None:
    alone = losses(example, BATCH)
    assert len(alone) == STEPS
    assert alone[-1] < 0.9 * alone[0]  # it does learn
    for seen in ranks:
        assert seen[example] == pytest.approx(alone, abs=1e-5)
