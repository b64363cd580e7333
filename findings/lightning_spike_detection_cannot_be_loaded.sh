#!/usr/bin/env bash
# Lightning's callback SpikeDetection cannot load the state that it gave.
#
# pytorch-lightning 2.6.6, torch 2.13.0 (CPU).
# What one would expect: callback.load_state_dict(callback.state_dict()) takes it back, as with other
# callbacks; a run with it goes on from a checkpoint.
# What happens: AttributeError: 'SpikeDetection' object has no attribute 'running'. The state is read
# into `running`; the attribute is called `running_mean`.
# A way around: class Mine(SpikeDetection) with a property `running` that gives self.running_mean.
# Seen on 2026-11-30:
#   EarlyStopping: loaded
#   SpikeDetection: AttributeError
#   SpikeDetection with `running`: loaded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 pytorch-lightning==2.6.6
cd "$folder"
cat >expected.txt <<'TEXT'
EarlyStopping: loaded
SpikeDetection: AttributeError
SpikeDetection with `running`: loaded
TEXT
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
from pytorch_lightning.callbacks import EarlyStopping, SpikeDetection


class Mine(SpikeDetection):
    @property
    def running(self):
        return self.running_mean


def loaded(make):
    state = make().state_dict()
    try:
        make().load_state_dict(state)
    except AttributeError:
        return "AttributeError"
    return "loaded"


print("EarlyStopping:", loaded(lambda: EarlyStopping("loss")))
print("SpikeDetection:", loaded(SpikeDetection))
print("SpikeDetection with `running`:", loaded(Mine))
PYTHON
diff expected.txt seen.txt
