"""A signal to the whole process group ends a run after its step, saved, however workers start."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

JOB = """
import os, subprocess, sys, time
import torch
from torch.utils.data import DataLoader, Dataset

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint, Validation
from hatbus.data import loader

where, number, method, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


class Slow(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.ones(1), torch.ones(1)


class Sends:
    @hookimpl
    def on_step_begin(self, ctx, global_step_id):
        if (ctx.optimizer is None) == (kind == "validation") and global_step_id == 1:
            # From outside: what the trainer sends itself, its workers have to obey.
            subprocess.run(["kill", f"-{number}", "--", f"-{os.getpgid(0)}"])
            time.sleep(0.1)


def built():
    make = DataLoader if kind == "torch" else loader
    return make(Slow(), 2, num_workers=1, multiprocessing_context=method)


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = torch.nn.Linear(1, 1)
    data = built()
    plugins = [Checkpoint(where, save_interval=None), Sends()]
    if kind == "validation":
        data = [(torch.ones(2, 1), torch.ones(2, 1))] * 3
        plugins.append(Validation(built(), callbacks=[Sends()], val_interval=1, interval_by="step"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, optimizer, data, torch.nn.functional.mse_loss, plugins).fit(num_epochs=2)
"""


@pytest.mark.parametrize(
    ("method", "number", "kind"),
    [
        ("spawn", signal.SIGTERM, "hatbus"),
        ("forkserver", signal.SIGTERM, "validation"),
        ("fork", signal.SIGTERM, "validation"),
    ],
)
def test_the_step_is_finished_and_saved(
    method: str, number: int, kind: str, tmp_path: Path
) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    command = [sys.executable, str(script), str(tmp_path / "c"), str(int(number)), method, kind]
    done = subprocess.run(
        command, start_new_session=True, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 75, done.stderr
    assert list((tmp_path / "c").glob("checkpoint-step-*"))
