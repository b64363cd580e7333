"""One of two processes is killed in a save: a good checkpoint is there, and a start goes on."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from sharded_checks import check_kills

sys.path.pop(0)


def test_a_kill_of_either_process_in_a_save_loses_nothing(tmp_path: Path) -> None:
    """A sample; ``every_sharded_kill.py`` does all."""
    assert check_kills(tmp_path, "sync", 60, 280) == 3
