"""A script as several processes that find each other, as srun would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from two_processes import free_port


def run_on(world: int, script: Path, folder: Path, patience: float = 200) -> list[Any]:
    """Runs a script as ``world`` processes; gives what each wrote as ``found-<rank>.json``."""
    store = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    env = {**os.environ, **store, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, str(script), str(folder / "found")]
    logs = [folder / f"log-{rank}" for rank in range(world)]
    running = []
    try:
        for rank, log in enumerate(logs):
            with log.open("wb") as file:
                more = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                one = subprocess.Popen(start, env={**env, **more}, cwd=folder, stderr=file)
                running.append(one)
        ends = [process.wait(timeout=patience) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert ends == [0] * world, logs[0].read_text()[-3000:] + logs[-1].read_text()[-3000:]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(world)]
