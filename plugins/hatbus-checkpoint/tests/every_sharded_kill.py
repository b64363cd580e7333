"""Either of two processes is killed at every call of a save that changes the disk."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sharded_checks import check_kills

sys.path.pop(0)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_kill_of_either_process_at_any_call_of_a_save_loses_nothing(
    how: str, tmp_path: Path
) -> None:
    assert check_kills(tmp_path, how, 1, 3500) > 100
