"""Sharded models (FSDP2) under plugins that look at every tensor, on two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from two_processes import run_on_two

SCRIPT = """
import json, sys
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from hatbus import Trainer
from hatbus.callbacks import GradMonitor, NanGuard
from hatbus.errors import NonFiniteError

torch.set_num_threads(1)
rank, kind = int(sys.argv[1]), {kind!r}
distributed.init_process_group("gloo")
torch.manual_seed(0)
data = [(torch.randn(4, 4), torch.randn(4, 1)) for _ in range(3)]
model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))  # the last bias has one row
if kind == "weight":
    model[0].weight.data[0, 0] = float("nan")  # on the first process's shard
if kind == "batch" and rank == 1:
    data[1][0][2, 3] = float("nan")
if kind == "output":
    data[2][0].fill_(3e38)
fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
trainer = Trainer(
    model, optimizer, data, nn.functional.mse_loss, [NanGuard(), GradMonitor(log_freq=1)],
    nan="ignore",
)
found = ""
try:
    trainer.fit(num_epochs=1)
except NonFiniteError as error:
    found = str(error)
with open(f"rank-{{rank}}.json", "w") as file:
    json.dump({{"found": found}}, file)
distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("weight", "step 0: the first tensor that is not finite is the parameter '0.weight'"),
        ("batch", "step 1: the first tensor that is not finite is the batch, entry"),
        ("output", "step 2: the first tensor that is not finite is the output of '0'"),
    ],
)
def test_nan_guard_says_the_same_on_every_process(
    kind: str, words: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    found = run_on_two(SCRIPT.format(kind=kind), tmp_path, pytestconfig.rootpath)
    said = [one["found"] for one in found]
    assert said[0] == said[1]
    assert said[0].startswith(words)
