#!/usr/bin/env bash
# litdata reads a vector of another dtype than the first sample's as other numbers, and more of them.
#
# litdata 0.2.76, torch 2.13.0 (CPU), numpy 2.4.6.
# What one would expect: a data set whose samples hold float32 in some and float64 in others (or int32
# and int64) gives them back as they were, or is refused by optimize() at the first sample that differs.
# What happens: vectors (one dimension) are stored without a header; the dtype is the first sample's.
# A float64 vector of 3 is read back as 6 float32 numbers, its bytes in two halves each. Nothing is said in
# writing or in reading. Tensors of two and more dimensions have a header and are right.
# A way around: cast in the function that optimize() calls.
# Seen on 2026-11-30:
#   sample 0: vector torch.float32 [0.0, 0.0, 0.0], matrix torch.float32 [[0.0]]
#   sample 1: vector torch.float32 [0.0, 1.875, 0.0, 1.875, 0.0, 1.875], matrix torch.float64 [[1.0]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 litdata==0.2.76
cd "$folder"
cat >expected.txt <<'TEXT'
sample 0: vector torch.float32 [0.0, 0.0, 0.0], matrix torch.float32 [[0.0]]
sample 1: vector torch.float32 [0.0, 1.875, 0.0, 1.875, 0.0, 1.875], matrix torch.float64 [[1.0]]
TEXT
cat >samples.py <<'PYTHON'
import litdata
import torch


def sample(index):
    dtype = torch.float64 if index % 2 else torch.float32
    value = torch.full((3,), float(index), dtype=dtype)
    return {"vector": value, "matrix": value[:1].reshape(1, 1)}


if __name__ == "__main__":
    litdata.optimize(sample, [0, 1], output_dir="data", chunk_bytes="1MB", num_workers=1)
PYTHON
venv/bin/python -W ignore samples.py >log.txt 2>&1
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
import litdata

for index, read in enumerate(litdata.StreamingDataset("data")):
    parts = (f"{name} {read[name].dtype} {read[name].tolist()}" for name in ("vector", "matrix"))
    print(f"sample {index}: {', '.join(parts)}")
PYTHON
diff expected.txt seen.txt
