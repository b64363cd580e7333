#!/usr/bin/env bash
# TensorBoard's EventAccumulator gives 10,000 of a long run's points, a random choice, without a word.
#
# tensorboard 2.21.0, and the writer of torch 2.13.0 (CPU).
# What one would expect: EventAccumulator(folder).Scalars(tag), what scripts read a finished run with,
# returns what is in the files, or says that it is a sample.
# What happens: from the 10,001st point on it keeps a reservoir of 10,000: of 20,000 steps half are
# missing, at random places that are the same each time; the last point is always kept. Best values, sums and
# "at which step did it cross" come out wrong. Whole counts beyond 2**24 are off by one as well: a
# scalar is stored as float32, and 16,777,217 tokens are read as 16,777,216.
# A way around: EventAccumulator(folder, size_guidance={"scalars": 0}).
# Seen on 2026-11-30:
#   by default 10000 of 20000 points, last step 19999; with scalars: 0, 20000
#   16777217 is read as 16777216.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 tensorboard==2.21.0
cd "$folder"
cat >expected.txt <<'TEXT'
by default 10000 of 20000 points, last step 19999; with scalars: 0, 20000
16777217 is read as 16777216.0
TEXT
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

with SummaryWriter("board") as writer:
    for step in range(20000):
        writer.add_scalar("loss", 1 / (step + 1), step)
    writer.add_scalar("tokens", 2**24 + 1, 0)
sampled = EventAccumulator("board")
whole = EventAccumulator("board", size_guidance={"scalars": 0})
points = [reader.Reload().Scalars("loss") for reader in (sampled, whole)]
print(
    f"by default {len(points[0])} of 20000 points, last step {points[0][-1].step}; "
    f"with scalars: 0, {len(points[1])}"
)
print(f"16777217 is read as {sampled.Scalars('tokens')[0].value}")
PYTHON
diff expected.txt seen.txt
