#!/usr/bin/env bash
# torchdata.nodes goes on with another epoch's order when a RandomSampler feeds it.
#
# torchdata 0.11.0, torch 2.13.0 (CPU), numpy 2.4.6.
# What one would expect: Loader.load_state_dict() in a new process goes on with the samples that the old
# one would have given, a seeded RandomSampler included, or refuses a sampler that it cannot position.
# What happens: the state holds how many samples the sampler gave, and not the state of its generator. The
# new sampler begins at its seed, so in the second epoch it runs through the first epoch's order again:
# samples are given twice and others never. Nothing is said.
# A way around: a sampler with set_epoch, such as DistributedSampler(num_replicas=1, rank=0): the epoch is in
# the state, and it is told.
# Seen on 2026-11-30:
#   RandomSampler: the rest is that of the run without a stop: False, samples of the epoch: 5 of 8
#   DistributedSampler: the rest is that of the run without a stop: True, samples of the epoch: 8 of 8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 torchdata==0.11.0
cd "$folder"
cat >expected.txt <<'TEXT'
RandomSampler: the rest is that of the run without a stop: False, samples of the epoch: 5 of 8
DistributedSampler: the rest is that of the run without a stop: True, samples of the epoch: 8 of 8
TEXT
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
import torch
from torch.utils.data import DistributedSampler, RandomSampler
from torchdata import nodes


def random(data):
    return RandomSampler(data, generator=torch.Generator().manual_seed(0))


def by_epoch(data):
    return DistributedSampler(data, num_replicas=1, rank=0, seed=0)


def loader(sampler):
    data = list(range(8))
    return nodes.Loader(nodes.MapStyleWrapper(data, sampler(data)))


for name, sampler in (("RandomSampler", random), ("DistributedSampler", by_epoch)):
    first = loader(sampler)
    list(first)  # the first epoch
    second = iter(first)
    begun = [next(second) for _ in range(4)]
    state = first.state_dict()
    whole = list(second)
    again = loader(sampler)
    again.load_state_dict(state)
    rest = list(again)
    seen = len({*begun, *rest})
    print(f"{name}: the rest is that of the run without a stop: {rest == whole}, ", end="")
    print(f"samples of the epoch: {seen} of 8")
PYTHON
diff expected.txt seen.txt
