"""The digits job, killed or terminated at random moments, ends as one that was left alone."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("digits_kills.py")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory where there is such a thing: fsync is quick there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


def hits(
    outside: Any, place: Path, count: int, seed: int, workers: int, *more: str
) -> dict[str, Any]:
    """Hits the job ``count`` times; every run must come to its end, with the same bytes."""
    words = [str(place), str(count), str(seed), str(workers), *more]
    outside.seconds = 1500
    done = outside.run(sys.executable, PROGRAM, *words)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert found["bad"] == [], done.err
    assert found["hits"] == count
    assert found["right"] == found["runs"]
    return found


@pytest.mark.timeout(900)
def test_two_hundred_kills_of_the_digits_job_change_nothing(outside: Any, place: Path) -> None:
    found = hits(outside, place, 200, 0, 0)
    assert {"start", "step"} <= set(found["phases"])  # the shorter phases are hit by chance


@pytest.mark.timeout(300)
def test_the_digits_job_is_saved_whenever_its_group_is_terminated(
    outside: Any, place: Path
) -> None:
    hits(outside, place, 3, 0, 2, "--terminate")
