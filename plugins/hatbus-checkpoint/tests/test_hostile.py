"""Whatever a checkpoint or a file holds: nothing of it is run, and nothing is written outside."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hostile import CHECKPOINTS, PICKLES
from runs import run, trainer_of

sys.path.pop(0)

from hatbus.cli import main
from hatbus.errors import CheckpointError
from hatbus_checkpoint.exchange import read_hat

LONGEST = 5.0
"""Seconds of work that a look at a hostile file may take; what hangs meets pytest's own limit."""


@pytest.fixture(scope="module")
def good(memory: Path) -> Path:
    run(memory / "good", 6, save_interval=None, save_hash=False)
    return memory / "good" / "checkpoint-step-6"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What exists when something was run."""
    monkeypatch.setenv("HATBUS_TEST_MARKER", str(tmp_path / "marker"))
    return tmp_path / "marker"


def seen_in(place: Path) -> set[str]:
    return {str(p.relative_to(place)) for p in place.rglob("*")}


def test_the_corpus_is_large() -> None:
    assert len(CHECKPOINTS) + len(PICKLES) >= 60


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_file_of_hats_is_refused(name: str, tmp_path: Path, marker: Path) -> None:
    PICKLES[name](tmp_path / "evil.pth.tar")
    began = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_hat(tmp_path / "evil.pth.tar")
    assert time.process_time() - began < LONGEST
    assert len(str(caught.value)) < 1000
    assert seen_in(tmp_path) == {"evil.pth.tar"}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused(
    name: str, good: Path, tmp_path: Path, marker: Path, capsys: Any
) -> None:
    path = tmp_path / "in" / good.name
    shutil.copytree(good, path)
    CHECKPOINTS[name](path)
    before, began = seen_in(tmp_path), time.process_time()
    trainer = trainer_of(tmp_path / "out", resume=str(path), strict_match=True)
    with pytest.raises(CheckpointError) as caught:
        trainer.fit(num_steps=7)
    assert len(str(caught.value)) < 2000
    for words in (["list"], ["verify"], ["show"]):
        assert main(["checkpoints", str(path.parent), *words]) in (0, CheckpointError.exit_code)
    main(["export", str(path.parent), "--single", str(tmp_path / "out" / "w.safetensors")])
    assert time.process_time() - began < 2 * LONGEST
    assert "Traceback" not in capsys.readouterr().err
    assert {n for n in seen_in(tmp_path) - before if not n.startswith("out")} == set()
    assert not marker.exists()
