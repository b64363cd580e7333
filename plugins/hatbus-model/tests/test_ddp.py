"""A model that is frozen, fused, averaged and changed on two processes is that of one process."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_two_ranks_stay_bit_identical_and_equal_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).with_name("ddp_run.py")
    base = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }

    def start(**extra: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(tmp_path / "run")]
        return subprocess.Popen(command, env={**base, **extra})

    both = [start(RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "run")])
    runpy.run_path(str(script), run_name="__main__")
    assert [p.wait(100) for p in both] == [0, 0]
    names = ("run-0-of-2.pt", "run-1-of-2.pt", "run-0-of-1.pt")
    first, second, alone = (torch.load(tmp_path / name) for name in names)
    for part in ("model", "ema"):
        assert first[part].keys() == second[part].keys() == alone[part].keys()
        assert "stem.1.weight" not in first[part]
        assert "head.1.weight" in first[part]
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name
            assert torch.allclose(value, alone[part][name], rtol=0, atol=1e-10), name
