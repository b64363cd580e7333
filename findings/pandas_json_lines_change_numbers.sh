#!/usr/bin/env bash
# pandas.read_json(lines=True) changes the last digits of losses and turns seconds into dates.
#
# pandas 3.1.1, numpy 2.4.6, Python's own json.
# What one would expect: a float that Python's json wrote with all its digits is read as the same
# float, as read_csv does (0 of 10,000 differ there); a number stays a number.
# What happens: the default parser is not exact: about 4 of 10 floats differ in their last bits, so
# two logs of one and the same run compare unequal. And a column whose name ends in _at or _time
# (train_time, tokens_at) is taken for dates once its numbers exceed 31,536,000: steps, tokens and
# nanoseconds do.
# Ways around: precise_float=True; convert_dates=False (deprecated since: dtype=False).
# Seen on 2026-11-30:
#   floats that differ: 3918 of 10000 by default, 0 with precise_float=True, 0 with read_csv
#   train_time: datetime64[us] by default, int64 with convert_dates=False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q pandas==3.1.1 numpy==2.4.6
cd "$folder"
cat >expected.txt <<'TEXT'
floats that differ: 3918 of 10000 by default, 0 with precise_float=True, 0 with read_csv
train_time: datetime64[us] by default, int64 with convert_dates=False
TEXT
venv/bin/python - <<'PYTHON' | tee seen.txt
import json
import random

import pandas

random.seed(0)
losses = [random.random() * 10 ** random.randint(-8, 8) for _ in range(10000)]
with open("log.jsonl", "w") as file:
    file.writelines(json.dumps({"loss": loss}) + "\n" for loss in losses)
with open("log.csv", "w") as file:
    file.writelines(["loss\n", *(f"{loss!r}\n" for loss in losses)])


def different(table):
    return sum(a != b for a, b in zip(losses, table["loss"], strict=True))


print(
    f"floats that differ: {different(pandas.read_json('log.jsonl', lines=True))} of 10000 "
    f"by default, {different(pandas.read_json('log.jsonl', lines=True, precise_float=True))} "
    f"with precise_float=True, {different(pandas.read_csv('log.csv'))} with read_csv"
)
with open("times.jsonl", "w") as file:
    file.writelines(json.dumps({"train_time": 40_000_000 * i}) + "\n" for i in (1, 2, 3))
kinds = [
    pandas.read_json("times.jsonl", lines=True, **options)["train_time"].dtype
    for options in ({}, {"convert_dates": False})
]
print(f"train_time: {kinds[0]} by default, {kinds[1]} with convert_dates=False")
PYTHON
diff expected.txt seen.txt
