"""Two processes in each host, started by torchrun, with the libraries: `tox -e hosts`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import host_loops as loops
import host_nine
import pytest
import torch
from host_ranks import ASKS_AT

SCRIPT = Path(loops.__file__).parent / "host_ranks.py"


def left_by(host: str, folder: Path) -> list[dict[str, Any]]:
    """What each of two processes has left."""
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2"]
    words = [*start, "--standalone", str(SCRIPT), host, str(folder)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("host", ["lightning", "transformers", "accelerate", "ignite"])
def test_two_processes_leave_what_they_leave_in_hatbus(host: str, tmp_path: Path) -> None:
    """Published once; a request of one process is served by both, a step later."""
    first, second = left_by(host, tmp_path / "host")
    own, _ = left_by(f"hatbus:{host}", tmp_path / "hatbus")
    assert (first["world"], first["steps"], second["steps"]) == (2, ASKS_AT + 2, ASKS_AT + 2)
    assert len(first["rows"]) == ASKS_AT + 2
    host_nine.assert_same(own, first, host)
    trained = [name for name in first["weights"] if "running" not in name]
    for name in trained:
        assert torch.equal(first["weights"][name], second["weights"][name]), name
