"""All 720 configurations of exact resume; not collected by itself: some minutes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from configurations import ALL, name_of, trial

sys.path.pop(0)


@pytest.mark.parametrize("one", ALL, ids=name_of)
def test_a_crashed_run_ends_with_the_same_bytes(tmp_path: Path, one: tuple[Any, ...]) -> None:
    trial(tmp_path, one)
