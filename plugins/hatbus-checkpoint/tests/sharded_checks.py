"""What tests of runs on several processes share: starting them, and what must be there then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hatbus_checkpoint.folder import CheckpointFolder, Entry
from hatbus_checkpoint.parts import whole_of
from hatbus_checkpoint.restore import Saved

WORLDS = Path(__file__).parent / "worlds.py"


def start(*words: str, program: Path = WORLDS, seconds: float = 280) -> str:
    """What the program of runs of several processes prints."""
    paths = os.pathsep.join([str(WORLDS.parent), *sys.path])
    more = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [sys.executable, str(program), *words],
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sys.stderr.write(done.stderr[-6000:])
    return done.stdout


def cases_done(folder: Path, *cases: str, seconds: float = 800) -> Path:
    """Does cases of ``sharded_cases.py`` in a folder."""
    codes: dict[str, list[int]] = json.loads(start(str(folder), *cases, seconds=seconds))
    assert not any(any(found) for found in codes.values()), codes
    return folder


def newest(path: Path) -> Entry:
    found = CheckpointFolder(path).latest()
    assert found is not None
    return found


def whole(entry: Entry) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint that is spread or could be, whole, as ``Looks`` names it."""
    saved = Saved(entry)
    found = {f"model/{n}": value for n, value in saved.model().items()}
    for name, state in saved.tree("optim")["state"].items():
        found |= {f"optim/{name}/{key}": value for key, value in state.items()}
    found |= {f"ema/{n}": v for n, v in saved.plugins()["ema"]["averages"].items()}
    return {name: whole_of(value) for name, value in found.items()}


def seen(path: Path, rank: int = 0) -> Any:
    return torch.load(path / f"found-{rank}.pt")


def check_same_values(case: str, runs: Path) -> None:
    saved = whole(newest(runs / case.partition(":")[0]))
    found = seen(runs / case.replace(":", "-to-"))
    assert found["state"].keys() == saved.keys()
    for name, value in found["state"].items():
        assert value.equal(saved[name]), name
    assert len(found["losses"]) == 3


def check_kills(folder: Path, how: str, each: int, seconds: float) -> int:
    """Kills either process at every ``each``-th call of a save; how many kills that were."""
    program = Path(__file__).with_name("sharded_kills.py")
    said = start(str(folder / how), how, str(each), program=program, seconds=seconds)
    found = json.loads(said)
    assert found["bad"] == []
    return int(found["points"])
