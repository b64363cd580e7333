"""The suite for GPUs can be tried on the host, so that it does not rot where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_part_of_it_passes_on_the_host(checkout: Path) -> None:
    chosen = "guard_sees or (bare_trainer and fp32) or kind_are_moved or overflow or same_outputs"
    words = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-W", "default", "-k", chosen]
    words += ["-p", "no:cacheprovider"]
    base = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env = {**base, "HATBUS_GPU_TESTS_ON": "cpu"}
    done = subprocess.run(
        words, cwd=checkout, env=env, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
