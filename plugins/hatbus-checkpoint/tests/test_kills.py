"""A run that is killed or told to stop at any time ends as one that never was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLS = Path(__file__).parent / "kills.py"
STOPS = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
import runs
from hatbus import hookimpl

class Signals:
    @hookimpl
    def on_step_begin(self, global_step_id):
        for number in {plan!r}.get(global_step_id, ()):
            os.kill(os.getpid(), number)

trainer = runs.trainer_of(Path(sys.argv[1]), {{"signals": Signals()}}, save_interval=None)
{change}
trainer.fit(num_steps=6)
print("to the end")
"""


def run(*words: str, seconds: float = 100) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "",
    }
    return subprocess.run(
        [sys.executable, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def killed(path: Path, kills: int, seed: int, workers: int, *more: str) -> dict[str, Any]:
    done = run(str(KILLS), str(path), str(kills), str(seed), str(workers), *more, seconds=580)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any], kills: int) -> None:
    assert found["kills"] >= kills
    assert found["bad"] == 0
    assert found["right"] == found["runs"]


@pytest.mark.parametrize(("kills", "workers"), [(12, 0), (6, 2)])
def test_a_run_that_is_killed_at_random_ends_with_the_same_bytes(
    tmp_path: Path, kills: int, workers: int
) -> None:
    check(killed(tmp_path, kills, 0, workers), kills)


def test_a_run_whose_group_is_terminated_is_always_saved_and_goes_on(tmp_path: Path) -> None:
    check(killed(tmp_path, 6, 0, 2, "--terminate"), 6)


def stopped(path: Path, plan: dict[int, list[int]], change: str = "") -> Any:
    program = STOPS.format(folder=str(KILLS.parent), plan=plan, change=change)
    return run("-c", program, str(path))


def steps(path: Path) -> list[int]:
    return sorted(int(p.name.split("-")[2]) for p in path.glob("checkpoint-step-*"))


SIGINT, SIGTERM, SIGUSR1 = 2, 15, 10


@pytest.mark.parametrize(
    ("plan", "code", "saved"),
    [
        ({2: [SIGTERM]}, 75, [3]),
        ({2: [SIGINT]}, 75, [3]),
        ({2: [SIGTERM, SIGTERM]}, 143, []),
        ({2: [SIGINT, SIGINT]}, 130, []),
        ({1: [SIGUSR1], 3: [SIGUSR1]}, 0, [2, 4, 6]),
    ],
    ids=["terminate", "interrupt", "terminate twice", "interrupt twice", "save"],
)
def test_a_signal_does_what_it_says(
    tmp_path: Path, plan: dict[int, list[int]], code: int, saved: list[int]
) -> None:
    done = stopped(tmp_path, plan)
    assert done.returncode == code, done.stderr
    assert ("to the end" in done.stdout) is (code == 0)
    assert steps(tmp_path) == saved


def test_a_stop_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    done = stopped(tmp_path, {2: [SIGTERM]}, 'trainer.bus.unregister("checkpoint")')
    assert done.returncode == 143
    assert "no checkpoint was saved" in done.stderr
