#!/usr/bin/env bash
# torch's FlopCounterMode counts 0 for an LSTM and for an encoder layer that takes its fast path.
#
# torch 2.13.0 (CPU).
# What one would expect: a recurrent or attention layer costs about the sum of its matrix products,
# and eval() does not make them free.
# What happens: nn.LSTM counts 0 while the nn.GRU of the same size is counted; TransformerEncoderLayer
# is counted in training and, in eval without gradients, drops to 0: both then run as one fused
# operation that the counter has no formula for, and nothing says that something was left out.
# A figure "FLOPs per step" or a utilisation that is computed from it is too low without a word.
# Ways around: count in training mode with gradients on; give custom_mapping={op: formula}.
# Seen on 2026-11-30:
#   GRU: 6000
#   LSTM: 0
#   encoder layer, training: 667200
#   encoder layer, eval without gradients: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat >expected.txt <<'TEXT'
GRU: 6000
LSTM: 0
encoder layer, training: 667200
encoder layer, eval without gradients: 0
TEXT
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
import torch
from torch.utils.flop_counter import FlopCounterMode


def count(name, module, values):
    with FlopCounterMode(display=False) as counter:
        module(values)
    print(f"{name}: {counter.get_total_flops()}")


sequence, sentence = torch.ones(5, 1, 10), torch.ones(1, 5, 16)
count("GRU", torch.nn.GRU(10, 10), sequence)
count("LSTM", torch.nn.LSTM(10, 10), sequence)
layer = torch.nn.TransformerEncoderLayer(16, 2, batch_first=True)
count("encoder layer, training", layer, sentence)
with torch.no_grad():
    count("encoder layer, eval without gradients", layer.eval(), sentence)
PYTHON
diff expected.txt seen.txt
