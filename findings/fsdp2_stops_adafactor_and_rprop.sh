#!/usr/bin/env bash
# Of torch's own dense optimizers two cannot make a step on a model sharded by FSDP2.
#
# torch 2.13.0 (CPU, gloo), one process: the shards are whole, and still DTensors.
# What one would expect: an optimizer that cannot train DTensors, which fully_shard makes of the
# parameters, refuses them when it is made.
# What happens: Adafactor and Rprop are made, and their first step ends with an error about a
# sharding strategy, for foreach=True and False alike. The other ten train.
# A way around: Adam or Adagrad in place of them, or DDP.
# Seen on 2026-11-30:
#   trained: ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop SGD
#   Adafactor foreach=False: RuntimeError in the first step
#   Adafactor foreach=True: RuntimeError in the first step
#   Rprop foreach=False: RuntimeError in the first step
#   Rprop foreach=True: NotImplementedError in the first step
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat >expected.txt <<'TEXT'
trained: ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop SGD
Adafactor foreach=False: RuntimeError in the first step
Adafactor foreach=True: RuntimeError in the first step
Rprop foreach=False: RuntimeError in the first step
Rprop foreach=True: NotImplementedError in the first step
TEXT
venv/bin/python -W ignore - <<'PYTHON' 2>errors.txt | tee seen.txt
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
NAMES = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD".split()
trained, failed = [], []
for name in NAMES:
    for foreach in (False, True):
        model = fully_shard(nn.Linear(4, 2), mesh=mesh)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, foreach=foreach)
        try:
            for step in ("first", "second"):
                optimizer.zero_grad()
                model(torch.ones(3, 4)).square().mean().backward()
                optimizer.step()
        except (NotImplementedError, RuntimeError) as error:
            failed.append(f"{name} foreach={foreach}: {type(error).__name__} in the {step} step")
        else:
            trained += [name] * (name not in trained)
print("trained:", *trained)
print("\n".join(failed))
PYTHON
diff expected.txt seen.txt
