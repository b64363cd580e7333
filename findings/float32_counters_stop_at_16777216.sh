#!/usr/bin/env bash
# Long runs: counters that are float32 stop at 16,777,216: torchmetrics' MeanMetric and Adam's step.
#
# torch 2.13.0 (CPU), torchmetrics 1.9.0.
# What one would expect: a mean over 16,778,216 values counts each of them; a counter counts.
# What happens: MeanMetric keeps the sum of its weights in float32. From 2**24 values on, one more
# value of weight 1 changes nothing: a thousand zeros after 2**24 ones leave the mean at exactly 1
# and the weight where it was. Means that are never reset, or reset once an epoch over more than
# 16.7 million values fed one by one (tokens, pixels), freeze. torch.optim.Adam's `step` is a
# float32 tensor too and stays at 2**24 for ever: harmless for its bias correction, wrong as a
# count of steps that a tool reads out of a checkpoint.
# A way around: MeanMetric().set_dtype(torch.float64); count steps elsewhere.
# Seen on 2026-11-30:
#   mean 1.0 of weight 16777216; with float64: mean 0.9999404, weight 16778216
#   Adam's step after 10 more: 16777216 (torch.float32)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
cd "$folder"
cat >expected.txt <<'TEXT'
mean 1.0 of weight 16777216; with float64: mean 0.9999404, weight 16778216
Adam's step after 10 more: 16777216 (torch.float32)
TEXT
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
import torch
from torchmetrics import MeanMetric


def mean(metric):
    metric.update(torch.ones(2**24))
    for _ in range(1000):
        metric.update(0.0)
    return metric.compute().item(), int(metric.weight)


single, double = mean(MeanMetric()), mean(MeanMetric().set_dtype(torch.float64))
print(
    f"mean {single[0]} of weight {single[1]}; "
    f"with float64: mean {double[0]:.7f}, weight {double[1]}"
)
weight = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.Adam([weight])
weight.grad = torch.ones(1)
optimizer.step()
step = optimizer.state[weight]["step"]
step.fill_(2**24)  # what as many steps would have made of it
for _ in range(10):
    optimizer.step()
print(f"Adam's step after 10 more: {int(step)} ({step.dtype})")
PYTHON
diff expected.txt seen.txt
