"""1,000 kills and 200 terminations of real runs; not collected by itself: some minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_kills import check, killed

sys.path.pop(0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_run_that_is_killed_at_random_ends_with_the_same_bytes(
    tmp_path: Path, workers: int, seed: int
) -> None:
    check(killed(tmp_path, 100, seed, workers), 100)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_run_whose_group_is_terminated_is_always_saved_and_goes_on(
    tmp_path: Path, seed: int
) -> None:
    check(killed(tmp_path, 50, seed, 2, "--terminate"), 50)
