"""FSDP2: freezing, averages, their view and the teacher are those of DDP, on shards."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def run(how: str, folder: Path) -> list[dict[str, object]]:
    """Starts two processes; what each found."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    base = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
    }
    script = Path(__file__).with_name("fsdp_run.py")
    words = [sys.executable, str(script), how, str(folder / "run")]
    both = [subprocess.Popen(words, env={**base, "RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(100) for process in both] == [0, 0]
    return [torch.load(folder / f"run-{how}-{rank}.pt") for rank in range(2)]


def test_shards_are_trained_frozen_averaged_and_shown_as_ddp_does_it(tmp_path: Path) -> None:
    first, second = run("fsdp", tmp_path)
    ddp, _ = run("ddp", tmp_path)
    assert (first["kind"], ddp["kind"]) == ("FSDPNet", "DistributedDataParallel")
    assert first["looks"] == pytest.approx(ddp["looks"], abs=1e-12)
    averaged, raw = ddp["looks"][::2], ddp["looks"][1::2]
    assert all(a != pytest.approx(r, rel=1e-3) for a, r in zip(averaged, raw, strict=True))
    for part in ("model", "ema", "pair", "late"):
        assert first[part].keys() == ddp[part].keys()
        for name, value in first[part].items():
            own = "running" in name  # only DDP gives every process the statistics of the first
            assert own or torch.equal(value, second[part][name]), name
            assert torch.allclose(value, ddp[part][name], rtol=0, atol=1e-12), name
