#!/usr/bin/env bash
# ModelCheckpoint(save_last="link") with AsyncCheckpointIO ends the run at its first save.
#
# pytorch-lightning 2.6.6, torch 2.13.0 (CPU).
# What one would expect: both are options of one library, and "link" is made for keeping the last checkpoint
# without writing it twice. In the foreground it works.
# What happens: the link is made at once. Where the disk is slow (here it waits for half a second; without that it
# depends on who is quicker) the writer's thread has not made the folder yet; os.symlink fails for that, which is
# taken for a system without links, and the checkpoint is copied, which is not there yet.
# A way around: save_last=True, which writes every checkpoint twice, or a folder that exists before.
# Seen on 2026-11-30:
#   foreground: trained
#   background: FileNotFoundError
#   background, folder made before: trained
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 numpy==2.4.6 pytorch-lightning==2.6.6
cd "$folder"
cat >expected.txt <<'TEXT'
foreground: trained
background: FileNotFoundError
background, folder made before: trained
TEXT
venv/bin/python -W ignore - <<'PYTHON' | tee seen.txt
import logging
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def training_step(self, batch):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class SlowDisk(TorchCheckpointIO):
    def save_checkpoint(self, *args, **more):
        time.sleep(0.5)
        super().save_checkpoint(*args, **more)


def run(folder, plugins):
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=2, save_last="link")
    trainer = pl.Trainer(
        max_steps=5, accelerator="cpu", logger=False, callbacks=[checkpoint], plugins=plugins,
        enable_progress_bar=False, enable_model_summary=False,
    )
    try:
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(5, 2)))
    except OSError as error:
        return type(error).__name__
    return "trained"


Path("made").mkdir()
print("foreground:", run("one", []))
print("background:", run("two", [AsyncCheckpointIO(SlowDisk())]))
print("background, folder made before:", run("made", [AsyncCheckpointIO(SlowDisk())]))
PYTHON
diff expected.txt seen.txt
