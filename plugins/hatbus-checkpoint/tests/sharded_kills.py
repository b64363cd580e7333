"""Kills one of two processes at a call of a save that changes the disk, and starts them again.

As a program: ``sharded_kills.py FOLDER HOW EACH`` takes every EACH-th call of either process in the
third save of a run, retention included, and prints what went wrong, as JSON. ``HOW`` is ``sync`` or
``async``. Several pairs of processes run at a time, as most of it is waiting.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
import torch.distributed.fsdp
from disk import CALLS
from torch import distributed, nn
from worlds import ended, started

from hatbus import Trainer, hookimpl, plugin, rng
from hatbus.callbacks import Checkpoint
from hatbus_checkpoint import durable, folder
from hatbus_checkpoint.folder import CheckpointFolder

KILLED_IN, STEPS, AT_ONCE = 3, 5, 4


class DyingOs:
    """``os``, whose process is killed before its call number ``at``, or in the middle of it."""

    def __init__(self, at: int) -> None:
        self.at, self.count, self.is_on = at, 0, False
        self._one = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, name) if name in CALLS else getattr(os, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        with self._one:
            number, self.count = self.count, self.count + self.is_on
        if self.is_on and number == self.at:
            if name == "write":
                os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return getattr(os, name)(*arguments)


@plugin(stage="report", everywhere=True)
class Notes:
    """Turns the dying on for one save, and notes which saves were acknowledged."""

    def __init__(self, place: Path, dying: DyingOs) -> None:
        self.place, self.dying = place, dying

    @hookimpl
    def on_checkpoint_saved(self, path: Path) -> None:
        self.dying.is_on = path.name == f"checkpoint-step-{KILLED_IN - 1}"
        with (self.place / "acknowledged").open("a") as file:
            file.write(f"{path.name}\n")


def train(path: Path, how: str, at: dict[int, int], rank: int) -> None:
    """Five steps of a model in parts, saved after each; two checkpoints are kept."""
    dying = DyingOs(at.get(rank, -1))
    for module in (durable, folder):
        module.os = dying  # type: ignore[attr-defined]
    distributed.init_process_group("gloo")
    rng.seed_all(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1))
    torch.distributed.fsdp.fully_shard(model)
    data = [(torch.ones(2, 3) * (k + rank), torch.ones(2, 1)) for k in range(1, STEPS + 1)]
    options = {"interval_by": "step", "keep_last": 2, "resume": "auto", "save_hash": False}
    saves = Checkpoint(str(path), async_save=how == "async", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plugins = {"checkpoint": saves, "notes": Notes(path, dying)}
    Trainer(model, optimizer, data, nn.functional.mse_loss, plugins, seed=0).fit(num_steps=STEPS)
    (path / f"calls-{rank}").write_text(str(dying.count))


def good(path: Path) -> tuple[int, Any]:
    """Step and files of the newest good checkpoint."""
    found = CheckpointFolder(path).latest()
    assert found is not None
    return found.manifest["progress"]["global_step"], found.manifest["files"]


def fresh(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def main(place: str, how: str, each: str) -> dict[str, Any]:
    whole = fresh(Path(place) / "whole")
    assert ended(started(2, partial(train, whole, how, {}))) == [0, 0]
    calls = [int((whole / f"calls-{rank}").read_text()) for rank in (0, 1)]
    points = [(rank, at) for rank in (0, 1) for at in range(0, calls[rank], int(each))]
    bad = []
    for begin in range(0, len(points), AT_ONCE):
        some = points[begin : begin + AT_ONCE]
        paths = [fresh(Path(place) / f"rank-{rank}-{at}") for rank, at in some]
        first = [
            started(2, partial(train, path, how, {rank: at}))
            for path, (rank, at) in zip(paths, some, strict=True)
        ]
        for path, (rank, _), pair in zip(paths, some, first, strict=True):
            codes = ended(pair, 100)
            step, _ = good(path)
            told = (path / "acknowledged").read_text().split()
            if codes[rank] != -signal.SIGKILL or codes[1 - rank] != 8:
                bad.append(f"{path.name}: codes {codes}")
            if step < max(int(name.split("-")[2]) for name in told):
                bad.append(f"{path.name}: {told[-1]} was acknowledged, and {step} is the newest")
        again = [started(2, partial(train, path, how, {})) for path in paths]
        for path, pair in zip(paths, again, strict=True):
            codes = ended(pair, 100)
            if codes != [0, 0] or good(path) != good(whole):
                bad.append(f"{path.name}: resumed with {codes}, another end")
    return {"points": len(points), "calls": calls, "bad": bad}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
