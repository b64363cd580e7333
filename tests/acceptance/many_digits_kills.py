"""1,000 kills and 200 terminations of the digits job; ``tox -e endure`` runs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_digits_kills import hits, place

sys.path.pop(0)

__all__ = ["place"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("seed", "workers"), [*((n, 0) for n in range(1, 9)), (1, 2), (2, 2)])
def test_a_hundred_kills_change_nothing(outside: Any, place: Path, seed: int, workers: int) -> None:
    hits(outside, place, 100, seed, workers)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 5))
def test_fifty_terminations_of_the_group_save_fifty_times(
    outside: Any, place: Path, seed: int
) -> None:
    hits(outside, place, 50, seed, 2, "--terminate")
