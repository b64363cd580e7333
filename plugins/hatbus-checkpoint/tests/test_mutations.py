"""No damaged checkpoint is ever accepted, and no forged one ends in a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mutations import DAMAGES, FORGERIES, Trials

sys.path.pop(0)


def tried(place: Path, damages: int, forgeries: int, seed: int) -> Trials:
    """Every kind so often."""
    trials = Trials(place, seed)
    for _ in range(damages):
        for kind in DAMAGES:
            trials.damage(kind)
    for _ in range(forgeries):
        for kind in FORGERIES:
            trials.forge(kind)
    return trials


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_mutated_checkpoints_are_refused_in_words(tmp_path: Path) -> None:
    trials = tried(tmp_path, 6, 30, 0)
    assert trials.wrong == []
    assert len(DAMAGES) >= 20
    assert {how for kind, how in trials.found if kind in DAMAGES} == {"refused"}
    assert {how for kind, how in trials.found if kind in FORGERIES} == {"accepted", "refused"}
