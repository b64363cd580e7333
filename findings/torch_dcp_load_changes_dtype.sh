#!/usr/bin/env bash
# torch.distributed.checkpoint loads float64 into int32 or float16 without a word.
#
# torch 2.13.0 (CPU), one process, no process group.
# What one would expect: as torch's own load_state_dict keeps the module's dtype by rounding floats,
# a checkpoint library may convert between float types; loading weights into integers is a mistake
# and would be told, as another shape is (CheckpointException).
# What happens: dcp.load copies in place into whatever tensor stands under the name. 0.7 and -0.7
# become 0 in an int32 tensor, 1e300 becomes inf in a float16 one. No error, no warning, with the default planner.
# A way around: compare dtypes with dcp.FileSystemReader(path).read_metadata() first.
# Seen on 2026-11-30:
#   float64 [0.7, -0.7, 2.5] into int32: [0, 0, 2]
#   float64 [1e+300] into float16: [inf]
#   another shape: CheckpointException
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat >expected.txt <<'TEXT'
float64 [0.7, -0.7, 2.5] into int32: [0, 0, 2]
float64 [1e+300] into float16: [inf]
another shape: CheckpointException
TEXT
venv/bin/python -W ignore - <<'PYTHON' 2>errors.txt | tee seen.txt
import torch
from torch.distributed import checkpoint


def into(name, values, empty):
    checkpoint.save({"weight": torch.tensor(values, dtype=torch.float64)}, checkpoint_id=name)
    state = {"weight": empty}
    checkpoint.load(state, checkpoint_id=name)
    return state["weight"].tolist()


weights = [0.7, -0.7, 2.5]
print(f"float64 {weights} into int32:", into("one", weights, torch.zeros(3, dtype=torch.int32)))
print("float64 [1e+300] into float16:", into("two", [1e300], torch.zeros(1, dtype=torch.float16)))
try:
    into("three", weights, torch.zeros(2, dtype=torch.float64))
except BaseException as error:
    print("another shape:", type(error).__name__)
PYTHON
diff expected.txt seen.txt
