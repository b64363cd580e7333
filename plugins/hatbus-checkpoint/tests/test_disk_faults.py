"""Save and retention under every fault at every call: no acknowledged checkpoint is ever lost.

One round is what the callback does: commit step 3, point to it, remove step 1. Before it, steps 1
and 2 are there. Blocks are of one page here, so that the weights are several, past the cache.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from disk import FaultyOs, Ghost, Killed, build

from hatbus_checkpoint import durable, folder, manifest, stream
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.tensor_file import chunks_of

sys.path.pop(0)


def save(store: CheckpointFolder, step: int) -> None:
    files = {
        "model.safetensors": lambda: chunks_of({"w": torch.full((2500,), float(step))}),
        "optim.json": lambda: [b"{}\n"],
        "plugins/ema.json": lambda: [b"[]\n"],
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
    store.write(f"checkpoint-step-{step}", files, fields, hashed=False)


def one_round(store: CheckpointFolder, done: list[str]) -> None:
    save(store, 3)
    done.append("saved")
    store.point("last", "checkpoint-step-3")
    store.remove(store.path / "checkpoint-step-1")
    done.append("retired")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", mmap.PAGESIZE)


@pytest.fixture(scope="module")
def before(memory: Path) -> Path:
    path = memory / "before"
    path.mkdir()
    for step in (1, 2):
        save(CheckpointFolder(path), step)
    return path


@pytest.fixture
def use_os(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(fake: Any) -> None:
        for module in (durable, folder):
            monkeypatch.setattr(module, "os", fake)

    return use


def attempts(before: Path, tmp_path: Path, use_os: Any, fault: str) -> Iterator[Any]:
    """One attempt per call of the round: (fake os, folder, what was acknowledged, error)."""
    at, more = 0, True
    while more:
        path = tmp_path / f"{fault}-{at}"
        shutil.copytree(before, path)
        fake, done, error = FaultyOs(at, fault), [], None
        use_os(fake)
        try:
            one_round(CheckpointFolder(path), done)
        except (OSError, Killed) as found:
            error = found
        use_os(os)
        more = fake.count > at
        if more:
            yield fake, path, done, error
        shutil.rmtree(path)
        at += 1


def steps_in(path: Path) -> list[int]:
    """The steps of all checkpoints there, every byte verified."""
    found = [manifest.verify(e.path) for e in CheckpointFolder(path).entries()]
    return sorted(m["progress"]["global_step"] for m in found)


def newest(path: Path) -> int:
    found = CheckpointFolder(path).latest()
    assert found is not None
    return int(found.manifest["progress"]["global_step"])


def test_a_kill_at_any_call_loses_nothing_that_was_acknowledged(
    before: Path, tmp_path: Path, use_os: Any
) -> None:
    points = 0
    for fake, path, done, _ in attempts(before, tmp_path, use_os, "kill"):
        points += 1
        steps = steps_in(path)
        assert 2 in steps, fake.hit
        assert newest(path) == max(steps)
        if "saved" in done:
            assert newest(path) == 3, fake.hit
        store = CheckpointFolder(path)
        store.sweep()
        assert not [p for p in path.iterdir() if p.name.startswith((".tmp-check", ".trash"))]
        if 3 not in steps:
            save(store, 3)
            assert newest(path) == 3
    assert points > 40


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_failing_disk_leaves_the_old_checkpoints_and_no_rubbish(
    before: Path, tmp_path: Path, use_os: Any, fault: str
) -> None:
    points = 0
    for fake, path, done, error in attempts(before, tmp_path, use_os, fault):
        points += 1
        assert isinstance(error, OSError), fake.hit
        assert 2 in steps_in(path), fake.hit
        if "saved" in done:
            assert newest(path) == 3
        else:
            assert steps_in(path) == [1, 2], fake.hit
            assert not [p for p in path.iterdir() if p.name.startswith(".tmp-check")], fake.hit
    assert points > 40


def test_short_writes_are_finished(before: Path, tmp_path: Path, use_os: Any) -> None:
    hits = 0
    for fake, path, done, error in attempts(before, tmp_path, use_os, "short"):
        hits += fake.hit == "write"
        assert error is None
        assert done == ["saved", "retired"]
        assert steps_in(path) == [2, 3]
    assert hits >= 7


def test_no_file_stays_open_after_a_fault(before: Path, tmp_path: Path, use_os: Any) -> None:
    start = len(list(Path("/proc/self/fd").iterdir()))
    for _ in attempts(before, tmp_path, use_os, "EIO"):
        assert len(list(Path("/proc/self/fd").iterdir())) <= start + 1


def _power_losses(before: Path, tmp_path: Path, use_os: Any) -> Iterator[tuple[Any, list[str]]]:
    """Every state that a power loss in the round may leave, with what was acknowledged by then."""
    path = tmp_path / "whole"
    shutil.copytree(before, path)
    marks: list[tuple[int, str]] = []
    fake = FaultyOs()

    class Done(list[str]):
        def append(self, what: str) -> None:
            marks.append((len(fake.log), what))

    use_os(fake)
    one_round(CheckpointFolder(path), Done())
    use_os(os)
    ghost = Ghost()
    for file in sorted(before.rglob("*")):
        name = str(path / file.relative_to(before))
        ghost.names[name] = ghost._next
        ghost.data[ghost._next] = b"<folder>" if file.is_dir() else file.read_bytes()
        ghost.synced[ghost._next] = ghost.data[ghost._next]
        ghost._next += 1
    ghost.durable = dict(ghost.names)
    for number, entry in enumerate(fake.log):
        ghost.play(entry)
        done = [what for length, what in marks if number + 1 >= length]
        for state in ghost.states():
            yield (state, str(path)), done


def test_a_power_loss_at_any_call_loses_nothing_that_was_acknowledged(
    before: Path, tmp_path: Path, use_os: Any
) -> None:
    states = 0
    for (state, old), done in _power_losses(before, tmp_path, use_os):
        states += 1
        here = tmp_path / "after"
        here.mkdir()
        build(state, old, here)
        assert 2 in steps_in(here)
        assert newest(here) == max(steps_in(here))
        if "saved" in done:
            assert newest(here) == 3
        shutil.rmtree(here)
    assert states > 60


def test_the_power_loss_test_catches_a_commit_without_fsync(
    before: Path, tmp_path: Path, use_os: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaultyOs, "_note", _without_file_syncs(FaultyOs._note))
    bad = 0
    for (state, old), _ in _power_losses(before, tmp_path, use_os):
        here = tmp_path / "after"
        here.mkdir()
        build(state, old, here)
        try:
            steps_in(here)
        except Exception:
            bad += 1
        shutil.rmtree(here)
    assert bad > 5


def _without_file_syncs(note: Any) -> Any:
    def noted(self: FaultyOs, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        path = self._paths.get(arguments[0], "") if name == "fsync" else ""
        if not path.endswith(("json", "safetensors")):
            note(self, name, arguments, result)

    return noted
