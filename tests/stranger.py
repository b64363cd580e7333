"""Distributions as somebody else would install them, written into a folder on ``sys.path``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

CHECKOUT = Path(__file__).resolve().parents[1]
RECORDER = '''
from hatbus import hookimpl, plugin


@plugin(stage="report", ranks="zero")
class Recorder:
    """Writes down the loss of every step.

    Args:
        path: where to.
        digits: how many.
    """

    def __init__(self, path: str, digits: int = 3, scale: float = 1.0) -> None:
        self.path, self.digits, self.scale = path, digits, scale

    @hookimpl
    def on_step_end(self, ctx, losses, global_step_id):
        value = sum(loss.item() for loss in losses.values()) * self.scale
        ctx.log({"train/loss": value})
        with open(self.path, "a") as file:
            file.write(f"{global_step_id} {value:.{self.digits}f}\\n")
'''
BUILD = """
import torch


def build(steps: int = 3, width: int = 3):
    model = torch.nn.Linear(width, 1)
    data = [(torch.ones(2, width), torch.zeros(2, 1)) for _ in range(steps)]
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "data": data,
        "loss": torch.nn.functional.mse_loss,
        "extra": "extra.txt",
    }
"""


def install(
    site: Path,
    distribution: str,
    entry_points: dict[str, str],
    modules: dict[str, str] | None = None,
    *,
    version: str = "1.0",
    requires: str = "hatbus<0.2,>=0.1",
    commands: dict[str, str] | None = None,
) -> None:
    """Puts a distribution into a folder as pip would leave it."""
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    required = f"Requires-Dist: {requires}\n" if requires else ""
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{required}"
    )
    lines = []
    for group, offered in (("plugins", entry_points), ("commands", commands or {})):
        lines += [f"[hatbus.{group}]", *(f"{name} = {value}" for name, value in offered.items())]
    info.joinpath("entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, source in (modules or {}).items():
        file = site / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(source))


def install_recorder(site: Path, **more: str) -> None:
    """The usual stranger: ``acme-hats`` with plugin ``recorder``."""
    install(
        site,
        "acme-hats",
        {"recorder": "acme_hats.recorder:Recorder", **more},
        {"acme_hats/__init__.py": "", "acme_hats/recorder.py": RECORDER},
    )


def hatbus(*words: str, site: Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own that sees the folder's distributions."""
    path = os.pathsep.join([str(CHECKOUT), str(site)])
    return subprocess.run(
        [sys.executable, "-m", "hatbus", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def write_job(folder: Path, plugins: str = "", run: str = "num_steps = 4") -> Path:
    """A job and its entry file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.py").write_text(BUILD)
    job = folder / "job.toml"
    job.write_text(f'[run]\nentry = "train.py:build"\n{run}\n{dedent(plugins)}')
    return job
