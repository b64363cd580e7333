#!/usr/bin/env bash
# Two stateful callbacks of one class go on with the states that they had before the training began.
#
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 (CPU).
# What one would expect: a callback that is an ExportableState comes back from a checkpoint as it was when
# that was saved, one of its class or several ("We can load/restore from multiple callbacks of the same type",
# says the trainer).
# What happens: with one it is so. With two, every save appends their states to a list that begins with
# those from before the first step; a resumed run takes the first two of the list. No word of it.
# A way around: give each instance a class of its own.
# Seen on 2026-11-30:
#   one callback: [3]
#   two callbacks: [0, 100]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
cat >expected.txt <<'TEXT'
one callback: [3]
two callbacks: [0, 100]
TEXT
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
import contextlib
import io

import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

transformers.logging.set_verbosity_error()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x, labels):
        outs = self.layer(x)
        return {"loss": torch.nn.functional.mse_loss(outs, labels), "logits": outs}


class Counts(TrainerCallback, ExportableState):
    def __init__(self, count=0):
        self.count = self.began_with = count

    def on_train_begin(self, *args, **more):
        self.began_with = self.count

    def on_step_end(self, *args, **more):
        self.count += 1

    def state(self):
        return {"args": {}, "attributes": {"count": self.count}}


def trained(callbacks, name, steps, resume):
    arguments = TrainingArguments(
        output_dir=name, max_steps=steps, save_steps=3, per_device_train_batch_size=1, use_cpu=True,
        report_to="none", disable_tqdm=True, restore_callback_states_from_checkpoint=resume,
    )
    data = [{"x": torch.ones(2), "labels": torch.ones(1)}] * 8
    trainer = Trainer(Model(), arguments, train_dataset=data, callbacks=callbacks)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(resume_from_checkpoint=resume or None)
    found = trainer.callback_handler.callbacks
    return [c.began_with for c in found if isinstance(c, Counts)]


for name, starts in (("one", [0]), ("two", [0, 100])):
    trained([Counts(n) for n in starts], name, 3, resume=False)
    found = trained([Counts() for _ in starts], name, 4, resume=True)
    print(f"{name} callback{'s' * (len(starts) > 1)}: {found}")
PYTHON
diff expected.txt seen.txt
