#!/usr/bin/env bash
# A run that is killed while ModelCheckpoint(save_last="link") saves begins anew with ckpt_path="last".
#
# pytorch-lightning 2.6.6, torch 2.13.0 (CPU).
# What one would expect: a checkpoint is written under another name and renamed, so a kill leaves the old one or
# the new one, and fit(ckpt_path="last") goes on from it.
# What happens: the old checkpoint, the only one that is kept by default, is removed before the link "last.ckpt"
# is put to the new one. Killed between, the link leads nowhere; "last" then finds nothing, warns, and the run
# begins at step 0, though the new checkpoint lies whole beside the link.
# A way around: save_top_k=-1, or giving the path of the newest file in place of "last".
# Seen on 2026-11-30:
#   last.ckpt leads nowhere: True
#   checkpoints there: ['epoch=0-step=4.ckpt']
#   goes on at step: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 pytorch-lightning==2.6.6
cd "$folder"
cat >expected.txt <<'TEXT'
last.ckpt leads nowhere: True
checkpoints there: ['epoch=0-step=4.ckpt']
goes on at step: 0
TEXT
cat >train.py <<'PYTHON'
import logging
import os
import signal
import sys

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def training_step(self, batch):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def on_train_start(self):
        print("goes on at step:", self.trainer.global_step)


class Killed(ModelCheckpoint):
    """Killed when the second save has removed the first one."""

    def _remove_checkpoint(self, trainer, path):
        super()._remove_checkpoint(trainer, path)
        os.kill(os.getpid(), signal.SIGKILL)


resumed = "resume" in sys.argv
checkpoint = (ModelCheckpoint if resumed else Killed)("kept", every_n_train_steps=2, save_last="link")
trainer = pl.Trainer(
    max_steps=6, accelerator="cpu", logger=False, callbacks=[checkpoint],
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(6, 2)), ckpt_path="last" if resumed else None)
PYTHON
venv/bin/python -W ignore train.py >/dev/null || true
{
    echo "last.ckpt leads nowhere: $([ -L kept/last.ckpt ] && [ ! -e kept/last.ckpt ] && echo True || echo False)"
    venv/bin/python -c "from pathlib import Path; print('checkpoints there:', [p.name for p in Path('kept').glob('epoch*')])"
    venv/bin/python -W ignore train.py resume
} | tee seen.txt
diff expected.txt seen.txt
