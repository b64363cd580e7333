"""Runs of two processes whose saves share files; ``tox -e endure`` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fine_tuning import newest_first, states_in

sys.path.pop(0)


def test_several_processes_share_what_the_first_one_writes(tmp_path: Path) -> None:
    program = Path(__file__).with_name("shared_files.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(program.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {name: set(codes) for name, codes in json.loads(done.stdout).items()} == {
        "ddp": {0},
        "ddp-shared": {0},
        "fsdp-shared": {0},
    }, done.stderr
    whole = states_in(tmp_path / "ddp")
    assert len(whole) == 6
    assert states_in(tmp_path / "ddp-shared") == whole
    newest = newest_first(tmp_path / "ddp-shared")[0]
    assert (newest / "model-00001.safetensors").stat().st_nlink == 6
