"""A script that trains ten steps with one peer: `python tests/peers/start.py NAME`."""

import importlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from peers.work import Job, Work

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    importlib.import_module(f"peers.of_{sys.argv[1]}").train(Work(Job(steps=10, folder=folder)))
