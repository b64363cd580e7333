"""10,000 mutated checkpoints; ``tox -e endure`` runs it, in some minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_mutations import tried

sys.path.pop(0)


@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("seed", range(1, 6))
def test_two_thousand_mutated_checkpoints_are_refused_in_words(tmp_path: Path, seed: int) -> None:
    trials = tried(tmp_path, 54, 100, seed)
    assert sum(trials.found.values()) >= 2000
    assert trials.wrong == []
