"""A PEFT adapter and a Transformers model, killed inside an epoch, go on bit for bit.

Skipped where transformers and peft are not installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hatbus.cli import main

pytest.importorskip("transformers")
pytest.importorskip("peft")

TRAIN = """
import os, signal, sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification
from hatbus import Trainer, hookimpl, rng
from hatbus.callbacks import Checkpoint, ExponentialMovingAverage, FreezeModule, Validation
from hatbus.data import loader

folder, kind, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng.seed_all(0)
sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
model = BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2))
if kind != "plain":
    lora = LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    model = get_peft_model(model, lora)
tokens = torch.randint(1, 50, (24, 8), generator=torch.Generator().manual_seed(1))
rows = [{"input_ids": one, "labels": one[0] // 25} for one in tokens]
trained = [one for one in model.parameters() if one.requires_grad]
head = "classifier" if kind == "plain" else "base_model.model.classifier"

class Kill:
    @hookimpl
    def on_step_begin(self, global_step_id):
        if global_step_id == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

plugins = [
    ExponentialMovingAverage(decay=0.5, decay_base=0, trained_only=True),
    FreezeModule([[head]], [5], "step"),
    Validation(loader(rows[:8], 4, shuffle=False)),
    Checkpoint(folder, save_interval=2, interval_by="step"),
]
trainer = Trainer(
    model, torch.optim.AdamW(trained, lr=1e-2), loader(rows, 4), plugins=[Kill(), *plugins],
    resume="auto",
)
trainer.fit(num_epochs=3)
if kind != "plain":
    with trainer.ctx.weights.showing("ema"):
        model.save_pretrained(folder + "/adapter")
"""


def train(folder: Path, kind: str, kill_at: int) -> int:
    script = folder.parent / "train.py"
    script.write_text(TRAIN)
    path = os.pathsep.join(filter(None, sys.path))
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, str(script), str(folder), kind, str(kill_at)]
    done = subprocess.run(words, env={**os.environ, **own}, capture_output=True, check=False)
    assert done.returncode in (0, -9), done.stderr.decode()
    return done.returncode


def files_of(folder: Path) -> dict[str, str]:
    (manifest,) = folder.glob("checkpoint-step-18-*/MANIFEST.json")
    files = json.loads(manifest.read_text())["files"]
    return {name: file["sha256"] for name, file in files.items()}


@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_it_goes_on_bit_for_bit_and_its_adapters_stand_alone(tmp_path: Path, kind: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, kind, -1) == 0
    assert train(parts, kind, 9) == -9
    assert train(parts, kind, -1) == 0
    one, other = files_of(whole), files_of(parts)
    assert {name for name in one if one[name] != other[name]} == set()
    if kind == "plain":
        return
    held = load_file(whole / "adapter/adapter_model.safetensors")
    again = load_file(parts / "adapter/adapter_model.safetensors")
    assert held.keys() == again.keys()
    assert all(held[name].equal(again[name]) for name in held)
    single = str(tmp_path / "lora.safetensors")
    words = ["export", str(parts), "--single", single, "--only", "*lora_*", "--weights", "ema"]
    assert main(words) == 0
    exported = load_file(single)
    assert {name.replace(".default", "") for name in exported} <= held.keys()
    for name, value in exported.items():
        assert torch.equal(value, held[name.replace(".default", "")])
