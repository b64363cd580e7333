"""A save that shares files, under every fault at every call, also while their first owner goes.

One round commits step 3, points to it, and removes step 2, whose files steps 1 and 3 have too.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from disk import FaultyOs, Ghost, Killed, build

from hatbus.errors import CheckpointError
from hatbus_checkpoint import durable, folder, manifest, pieces, stream, tensor_file
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.restore import Saved
from hatbus_checkpoint.saving import Saves
from hatbus_checkpoint.sharded.peers import Peers
from hatbus_checkpoint.snapshot import Snapshot
from hatbus_checkpoint.unchanged import unchanged

sys.path.pop(0)

FROZEN = torch.arange(2500.0)
ALONE = Peers(cast("Any", SimpleNamespace(rank=0, world_size=1, control=None)))


class Run:
    """Steps 1 and 2 are saved; ``one_round`` is what comes next."""

    def __init__(self, path: Path, steps: Iterable[int] = (1, 2)) -> None:
        path.mkdir()
        self.folder = CheckpointFolder(path)
        self.folder.probe()
        self.saves = Saves(self.folder, hashed=False)
        self.saves.share(1)
        for step in steps:
            self.save(step)

    def save(self, step: int) -> None:
        trained = torch.full((2500,), float(step))
        parts: dict[str, Any] = {
            "model": (None, {"frozen": FROZEN, "trained": trained}),
            "plugins/ema": ([], {"frozen": FROZEN.clone(), "trained": trained}),
        }
        fields = {
            "run": "me",
            "lineage": 1,
            "progress": {"epoch": 0, "step": step, "global_step": step},
            "plugins": [],
            "settings": {},
            "metrics": {},
            "world_size": 1,
        }
        begun = self.saves.begin(f"checkpoint-step-{step}", Snapshot(parts), {("model", "frozen")})
        self.saves.write(begun, fields, ALONE, lambda entry: entry.path)

    def one_round(self, done: list[str]) -> None:
        self.save(3)
        done.append("saved")
        self.folder.point("last", "checkpoint-step-3")
        self.folder.remove(self.folder.path / "checkpoint-step-2")
        done.append("retired")


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", mmap.PAGESIZE)
    monkeypatch.setattr(unchanged, "LEAST", 64)


@pytest.fixture
def use_os(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(fake: Any) -> None:
        for module in (durable, folder):
            monkeypatch.setattr(module, "os", fake)

    return use


def attempts(tmp_path: Path, use_os: Any, fault: str) -> Iterator[Any]:
    """One attempt per call of the round: (fake os, folder, what was acknowledged, error)."""
    at, more = 0, True
    while more:
        path = tmp_path / f"{fault}-{at}"
        run = Run(path)
        fake, done, error = FaultyOs(at, fault), [], None
        use_os(fake)
        try:
            run.one_round(done)
        except (Exception, Killed) as found:
            error = found
        use_os(os)
        more = fake.count > at
        if more:
            yield fake, path, done, error
        shutil.rmtree(path)
        at += 1


def steps_in(path: Path) -> list[int]:
    """The steps of all checkpoints there, every byte verified and every tensor read."""
    steps = []
    for entry in CheckpointFolder(path).entries():
        found = manifest.verify(entry.path)
        steps.append(found["progress"]["global_step"])
        tensors = Saved(entry).model()
        for name in pieces.files_of(found, "plugins/ema"):
            tensors |= tensor_file.read(entry.path / name)
        assert torch.equal(tensors["frozen"], FROZEN)
        assert torch.equal(tensors["trained"], torch.full((2500,), float(steps[-1])))
    return sorted(steps)


def test_a_kill_at_any_call_loses_nothing_that_was_acknowledged(
    tmp_path: Path, use_os: Any
) -> None:
    hits = []
    for fake, path, done, _ in attempts(tmp_path, use_os, "kill"):
        hits.append(fake.hit)
        steps = steps_in(path)
        assert 1 in steps, fake.hit
        assert 3 in steps or "saved" not in done, fake.hit
        store = CheckpointFolder(path)
        store.sweep()
        assert not [p for p in path.iterdir() if p.name.startswith((".tmp-check", ".trash"))]
        assert steps_in(path) == steps
    assert hits.count("link") == 2
    assert len(hits) > 50


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_failing_disk_leaves_the_old_checkpoints_and_no_rubbish(
    tmp_path: Path, use_os: Any, fault: str
) -> None:
    hits = []
    for fake, path, done, error in attempts(tmp_path, use_os, fault):
        hits.append(fake.hit)
        cause = error if isinstance(error, OSError) else getattr(error, "__cause__", None)
        assert isinstance(cause, OSError), fake.hit
        assert cause.errno == getattr(errno, fault)
        if "saved" in done:
            assert {1, 3} <= set(steps_in(path)), fake.hit
        else:
            assert steps_in(path) == [1, 2], fake.hit
            assert not [p for p in path.iterdir() if p.name.startswith(".tmp-check")], fake.hit
    assert hits.count("link") == 2


def test_short_writes_are_finished(tmp_path: Path, use_os: Any) -> None:
    for _, path, done, error in attempts(tmp_path, use_os, "short"):
        assert error is None
        assert done == ["saved", "retired"]
        assert steps_in(path) == [1, 3]


def power_losses(tmp_path: Path, use_os: Any) -> Iterator[tuple[Any, str, list[int]]]:
    """Every state that a power loss in a run may leave, with the steps acknowledged by then."""
    path = tmp_path / "whole"
    fake = FaultyOs()
    use_os(fake)
    run = Run(path, steps=())
    marks = []
    for step in (1, 2, 3):
        run.save(step)
        marks.append((len(fake.log), step))
    marks.append((len(fake.log), 0))
    run.folder.remove(path / "checkpoint-step-2")
    use_os(os)
    assert [kind for kind, *_ in fake.log].count("link") == 4 + 1  # that of the probe
    ghost = Ghost()
    ghost.names[str(path)] = 0
    ghost.data[0] = ghost.synced[0] = b"<folder>"
    ghost.durable = dict(ghost.names)
    for number, entry in enumerate(fake.log):
        ghost.play(entry)
        done = [step for length, step in marks if number + 1 >= length]
        if number >= marks[0][0]:
            for state in ghost.states():
                yield state, str(path), done


def lost(state: Any, old: str, done: list[int], here: Path) -> str:
    """What is wrong with a state; empty if nothing is."""
    here.mkdir()
    build(state, old, here)
    try:
        steps = steps_in(here)
    except CheckpointError as error:
        return str(error)
    finally:
        shutil.rmtree(here)
    missing = {step for step in done if step} - set(steps)
    return "" if missing <= ({2} if 0 in done else set()) else f"{missing} not there"


def test_a_power_loss_at_any_call_loses_nothing_that_was_acknowledged(
    tmp_path: Path, use_os: Any
) -> None:
    faults = [lost(*loss, tmp_path / "after") for loss in power_losses(tmp_path, use_os)]
    assert len(faults) > 80
    assert set(faults) == {""}


def test_the_power_loss_test_catches_links_to_a_file_that_was_never_synced(
    tmp_path: Path, use_os: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = FaultyOs._note

    def without_one(self: FaultyOs, name: str, arguments: Any, result: Any) -> None:
        path = self._paths.get(arguments[0], "") if name == "fsync" else ""
        if not path.endswith("model-00001.safetensors"):
            noted(self, name, arguments, result)

    monkeypatch.setattr(FaultyOs, "_note", without_one)
    faults = [lost(*loss, tmp_path / "after") for loss in power_losses(tmp_path, use_os)]
    assert len([fault for fault in faults if "model-00001" in fault]) > 20
