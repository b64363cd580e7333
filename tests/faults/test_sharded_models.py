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


LARGEST = """
import json, sys
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from hatbus import Trainer, hookimpl
from hatbus.callbacks import GradClip, GradMonitor
from hatbus.parallel import full_tensor

torch.set_num_threads(1)
rank, is_sharded = int(sys.argv[1]), {is_sharded}
if is_sharded:
    distributed.init_process_group("gloo")
torch.manual_seed(0)
data = [(torch.randn(4, 4), torch.randn(4, 1)) for _ in range(3)]
model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))  # the last bias has one row
if is_sharded:
    fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
seen = {{}}

class Keep:
    @hookimpl
    def on_log(self, ctx, logs):
        found = {{n: v for n, v in logs.items() if "norm" in n}}
        seen.update({{f"{{n}} in step {{ctx.global_step_id}}": float(v) for n, v in found.items()}})

inf = float("inf")
monitor = GradMonitor(log_freq=1, norm_type=inf, weights=True)
plugins = [GradClip(0.05, norm_type=inf), monitor, Keep()]
Trainer(model, optimizer, data, nn.functional.mse_loss, plugins).fit(num_epochs=1)
weights = [value for w in model.parameters() for value in full_tensor(w).flatten().tolist()]
with open(f"rank-{{rank}}.json", "w") as file:
    json.dump({{"seen": seen, "weights": weights}}, file)
if is_sharded:
    distributed.destroy_process_group()
"""


def test_the_largest_gradient_is_that_of_whole_weights_where_a_shard_is_empty(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    found = {}
    for is_sharded in (False, True):
        folder = tmp_path / str(is_sharded)
        folder.mkdir()
        ranks = run_on_two(LARGEST.format(is_sharded=is_sharded), folder, pytestconfig.rootpath)
        assert ranks[0] == ranks[1]
        found[is_sharded] = ranks[0]
    whole, sharded = found[False], found[True]
    assert len(whole["seen"]) == 15  # all, and gradients and weights of two modules, in three steps
    assert sharded["seen"] == pytest.approx(whole["seen"], rel=1e-6)
    assert sharded["weights"] == pytest.approx(whole["weights"], rel=1e-6)
