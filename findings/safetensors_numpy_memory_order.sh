#!/usr/bin/env bash
# safetensors.numpy writes an array's memory, not its values: Fortran order and steps come back scrambled.
#
# safetensors 0.8.0, numpy 2.4.6.
# What one would expect: an array that numpy shows as [[0 1 2] [3 4 5]] is read back as that, or
# refused. safetensors.torch refuses a tensor that is not contiguous, and says so.
# What happens: safetensors.numpy.save_file takes the array without a word. Read back, one in
# Fortran order (what pandas, scipy and a transpose give) has its values in other places, and one
# with a step holds values that were never in it. Shape and dtype are right. Big-endian arrays
# are turned round as they should be.
# A way around: numpy.ascontiguousarray before the save.
# Seen on 2026-11-30:
#   fortran order: saved [[0, 1, 2], [3, 4, 5]], read [[0, 3, 1], [4, 2, 5]]
#   every second value: saved [0, 2, 4], read [0, 1, 2]
#   big-endian: saved [0, 1, 2, 3], read [0, 1, 2, 3]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q safetensors==0.8.0 numpy==2.4.6
cd "$folder"
cat >expected.txt <<'TEXT'
fortran order: saved [[0, 1, 2], [3, 4, 5]], read [[0, 3, 1], [4, 2, 5]]
every second value: saved [0, 2, 4], read [0, 1, 2]
big-endian: saved [0, 1, 2, 3], read [0, 1, 2, 3]
TEXT
venv/bin/python - <<'PYTHON' | tee seen.txt
import numpy
from safetensors.numpy import load_file, save_file

arrays = {
    "fortran order": numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
    "every second value": numpy.arange(6)[::2],
    "big-endian": numpy.arange(4, dtype=">i4"),
}
for name, array in arrays.items():
    save_file({"a": array}, "a.safetensors")
    read = load_file("a.safetensors")["a"]
    print(f"{name}: saved {array.tolist()}, read {read.tolist()}")
PYTHON
diff expected.txt seen.txt
