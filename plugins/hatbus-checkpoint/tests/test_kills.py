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
    assert found["bad"] == []
    assert found["right"] == found["runs"]


@pytest.mark.parametrize(("kills", "workers"), [(6, 0), (3, 2)])
def test_a_run_that_is_killed_at_random_ends_with_the_same_bytes(
    tmp_path: Path, kills: int, workers: int
) -> None:
    check(killed(tmp_path, kills, 0, workers), kills)


def test_a_run_that_shares_files_between_saves_and_is_killed_ends_with_the_same_state(
    tmp_path: Path,
) -> None:
    found = killed(tmp_path, 6, 1, 0, "--incremental")
    check(found, 6)
    assert found["shared"] == (found["runs"] if found["copies"] == 1 else 0)


def test_a_run_whose_group_is_terminated_is_always_saved_and_goes_on(tmp_path: Path) -> None:
    check(killed(tmp_path, 3, 0, 2, "--terminate"), 3)


def steps(path: Path) -> list[int]:
    return sorted(int(p.name.split("-")[2]) for p in path.glob("checkpoint-step-*"))


SIGINT, SIGTERM, SIGUSR1 = 2, 15, 10
PLANS: dict[str, tuple[dict[int, list[int]], int, list[int]]] = {
    "terminate": ({2: [SIGTERM]}, 75, [3]),
    "interrupt": ({2: [SIGINT]}, 130, [3]),
    "terminate twice": ({2: [SIGTERM, SIGTERM]}, 143, []),
    "interrupt twice": ({2: [SIGINT, SIGINT]}, 130, []),
    "save": ({1: [SIGUSR1], 3: [SIGUSR1]}, 0, [2, 4, 6]),
    "terminate where it was resumed": ({}, 75, [4]),
    "nobody saves": ({2: [SIGTERM]}, 143, []),
}
"""Which signals come in which step, the exit code, and the steps that are saved."""


@pytest.fixture(scope="module")
def signalled(memory: Path) -> tuple[Path, dict[str, int]]:
    """All plans, each in a forked run: where they saved, and their exit codes."""
    folder = memory / "signalled"
    folder.mkdir()
    plans = json.dumps({name: plan for name, (plan, _, _) in PLANS.items()})
    done = run(str(KILLS.with_name("signalled.py")), str(folder), plans)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stopped by SIGTERM, and no checkpoint was saved") == 1
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", PLANS)
def test_a_signal_does_what_it_says(name: str, signalled: tuple[Path, dict[str, int]]) -> None:
    folder, codes = signalled
    assert codes[name] == PLANS[name][1]
    assert steps(folder / name) == PLANS[name][2]
