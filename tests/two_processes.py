"""A script run as two processes that find each other, as torchrun would start it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

LEAVES = """
import os, sys
# Threads of a group that something still holds may be aborted by the interpreter's end (SIGABRT).
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""


def run_on_two(script: str, folder: Path, checkout: Path) -> list[dict[str, Any]]:
    """Runs a script as two processes; gives what each wrote into its file."""
    (folder / "plays.py").write_text(script + LEAVES)
    folders = [checkout, checkout / "tests", checkout / "tests" / "parallel"]
    paths = os.pathsep.join(map(str, folders))
    store = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    env = {**os.environ, **store, "PYTHONPATH": paths}
    running = [
        subprocess.Popen(
            [sys.executable, "plays.py", str(rank)], cwd=folder, env={**env, "RANK": str(rank)}
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=250) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port
