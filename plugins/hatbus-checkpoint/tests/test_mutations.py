"""No damaged checkpoint is ever accepted, and no forged one ends in a traceback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mutations import DAMAGES, FORGERIES, Trials

from hatbus_checkpoint import manifest
from hatbus_checkpoint.unchanged import unchanged

sys.path.pop(0)


def tried(place: Path, damages: int, forgeries: int, seed: int, **options: Any) -> Trials:
    """Every kind so often."""
    trials = Trials(place, seed, **options)
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


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_so_are_those_whose_tensors_are_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unchanged, "LEAST", 1)
    trials = tried(tmp_path, 3, 20, 1, incremental=True, copies=1, frozen=True)
    assert trials.wrong == []
    assert "split" in manifest.read(trials.whole)
    assert {how for kind, how in trials.found if kind in DAMAGES} == {"refused"}
    assert {how for kind, how in trials.found if kind in FORGERIES} == {"accepted", "refused"}
