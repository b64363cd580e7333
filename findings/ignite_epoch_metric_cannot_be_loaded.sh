#!/usr/bin/env bash
# ignite's metrics that keep lists cannot load the state that they gave, in a process that is new.
#
# pytorch-ignite 0.5.5, torch 2.13.0 (CPU), numpy 2.4.6.
# What one would expect: metric.load_state_dict(state_dict()) gives a new EpochMetric (and what is made of
# it: ROC_AUC, AveragePrecision) the predictions and targets of the old one, as it does with other metrics.
# What happens: the saved lists fill the present ones place by place. Those of a new metric are empty, so
# any state that is not empty is refused: "Size of y: 2 does not match the size of x: '0'". Only a metric
# that was updated equally often takes the state back.
# A way around: make the lists long enough first, metric._predictions = list(saved), and load then.
# Seen on 2026-11-30:
#   MeanSquaredError: loaded
#   EpochMetric, new: ValueError
#   EpochMetric, updated twice before: loaded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 pytorch-ignite==0.5.5
cd "$folder"
cat >expected.txt <<'TEXT'
MeanSquaredError: loaded
EpochMetric, new: ValueError
EpochMetric, updated twice before: loaded
TEXT
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
import torch
from ignite.metrics import EpochMetric, MeanSquaredError


def updated(metric, times):
    for number in range(times):
        metric.update((torch.full((3,), float(number)), torch.zeros(3)))
    return metric


def make():
    return EpochMetric(lambda outputs, target: float((outputs - target).max()))


def loaded(metric, state):
    try:
        metric.load_state_dict(state)
    except ValueError:
        return "ValueError"
    return "loaded"


print("MeanSquaredError:", loaded(MeanSquaredError(), updated(MeanSquaredError(), 2).state_dict()))
state = updated(make(), 2).state_dict()
print("EpochMetric, new:", loaded(make(), state))
print("EpochMetric, updated twice before:", loaded(updated(make(), 2), state))
PYTHON
diff expected.txt seen.txt
