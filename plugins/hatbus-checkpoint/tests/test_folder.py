"""Checkpoints are verified, listed and removed; damaged ones are named and never used."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hatbus.errors import CheckpointError, JobError, SaveError
from hatbus_checkpoint import manifest
from hatbus_checkpoint.folder import CheckpointFolder, Entry
from hatbus_checkpoint.lock import FolderLock
from hatbus_checkpoint.retention import Ranking, superfluous
from hatbus_checkpoint.tensor_file import chunks_of

LOSS = ("val/loss", "min")


def fields(
    step: int,
    run: str = "me",
    lineage: int = 1,
    best: float | None = None,
    metric: str = "val/loss",
) -> dict[str, Any]:
    return {
        "run": run,
        "lineage": lineage,
        "progress": {"epoch": 0, "step": step, "global_step": step},
        "plugins": [],
        "settings": {},
        "metrics": {},
        "world_size": 1,
        "best": None if best is None else {"metric": metric, "mode": "min", "value": best},
    }


def save(folder: CheckpointFolder, step: int, **more: Any) -> Entry:
    weight = torch.full((40, 40), float(step))
    files = {
        "model.safetensors": lambda: chunks_of({"weight": weight}),
        "progress.json": lambda: [b'{"step": %d}\n' % step],
        "plugins/ema.json": lambda: [b"{}\n"],
    }
    return folder.write(f"checkpoint-step-{step}", files, fields(step, **more), hashed=False)


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path)


def test_a_checkpoint_is_files_that_others_can_open(folder: CheckpointFolder) -> None:
    path = save(folder, 7).path
    assert load_file(path / "model.safetensors")["weight"].equal(torch.full((40, 40), 7.0))
    read = json.loads((path / "MANIFEST.json").read_text())
    assert set(read["files"]) == {"model.safetensors", "progress.json", "plugins/ema.json"}
    assert (path / "MANIFEST.json").stat().st_mode & 0o777 == 0o644
    assert not list(folder.path.glob(".tmp*"))


def test_latest_is_the_highest_step_compared_as_a_number(folder: CheckpointFolder) -> None:
    for step in (9, 100, 20):
        save(folder, step)
    found = folder.latest()
    assert found is not None
    assert found.path.name == "checkpoint-step-100"


def test_a_later_run_in_the_folder_is_newer_than_a_higher_step(folder: CheckpointFolder) -> None:
    save(folder, 100)
    save(folder, 5, run="other", lineage=2)
    found = folder.latest()
    assert found is not None
    assert found.path.name == "checkpoint-step-5"


def test_a_name_that_an_earlier_run_took_gets_a_number(folder: CheckpointFolder) -> None:
    save(folder, 5)
    assert save(folder, 5, run="other", lineage=2).path.name == "checkpoint-step-5.2"
    assert len(folder.entries()) == 2


def test_a_run_finds_its_own_checkpoints_and_reads_those_of_others_once(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(5):
        save(folder, step, run="other")
    read: list[str] = []
    real = manifest.read
    monkeypatch.setattr(manifest, "read", lambda path: read.append(path.name) or real(path))
    mine = [save(folder, step).path.name for step in (10, 11)]
    assert sorted(e.path.name for e in folder.of_run("me")) == mine
    assert len(read) == 7
    mine.append(save(folder, 12).path.name)
    folder.remove(folder.path / mine.pop(0))
    (folder.path / mine[0] / manifest.NAME).write_text("damaged")
    assert [e.path.name for e in folder.of_run("me")] == mine[1:]
    assert sorted(read[7:]) == mine
    assert len(folder.of_run("other")) == 5


def test_two_prefixes_in_one_folder_never_see_each_other(tmp_path: Path) -> None:
    one, other = CheckpointFolder(tmp_path), CheckpointFolder(tmp_path, "a.")
    save(one, 1)
    save(other, 2)
    (tmp_path / ".tmp-a.checkpoint-step-3-1").mkdir()
    one.sweep()
    assert [e.path.name for e in one.entries()] == ["checkpoint-step-1"]
    assert [e.path.name for e in other.entries()] == ["a.checkpoint-step-2"]
    assert (tmp_path / ".tmp-a.checkpoint-step-3-1").exists()
    other.sweep()
    assert not (tmp_path / ".tmp-a.checkpoint-step-3-1").exists()


def _damage(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        (path / name).write_bytes(change((path / name).read_bytes()))

    return apply


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _swap(path: Path, make: Callable[[Path], None]) -> None:
    (path / "progress.json").unlink()
    make(path / "progress.json")


def _newer(data: bytes) -> bytes:
    return data.replace(b'"format": 1', b'"format": 3')


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bit flip in the weights": (
        _damage("model.safetensors", lambda b: _flip(b, len(b) // 2)),
        "damaged",
    ),
    "truncated": (_damage("model.safetensors", lambda b: b[:-3]), "bytes, not"),
    "empty": (_damage("model.safetensors", lambda b: b""), "has 0 bytes"),
    "zeroed": (_damage("model.safetensors", lambda b: bytes(len(b))), "damaged"),
    "extended": (_damage("progress.json", lambda b: b + b" "), "bytes, not"),
    "file gone": (lambda p: (p / "plugins/ema.json").unlink(), "missing"),
    "manifest gone": (lambda p: (p / "MANIFEST.json").unlink(), "has no MANIFEST"),
    "manifest empty": (_damage("MANIFEST.json", lambda b: b""), "garbled"),
    "manifest cut": (_damage("MANIFEST.json", lambda b: b[: len(b) // 2]), "garbled"),
    "manifest no object": (_damage("MANIFEST.json", lambda b: b"[]"), "names no format"),
    "manifest deep": (_damage("MANIFEST.json", lambda b: b"[" * 100_000), "garbled"),
    "manifest long number": (
        _damage("MANIFEST.json", lambda b: b'{"format": %s}' % (b"9" * 5000)),
        "garbled",
    ),
    "other step": (
        _damage("MANIFEST.json", lambda b: b.replace(b'"global_step": 3', b'"global_step": 4')),
        "own hash",
    ),
    "two of one key": (
        _damage("MANIFEST.json", lambda b: b.replace(b'"format"', b'"run": "x", "format"', 1)),
        "was changed",
    ),
    "newer format": (_damage("MANIFEST.json", _newer), "has format 3"),
    "link": (lambda p: _swap(p, lambda f: f.symlink_to("/etc/hostname")), "cannot be read"),
    "fifo": (lambda p: _swap(p, os.mkfifo), "no regular file"),
    "folder in place of a file": (lambda p: _swap(p, Path.mkdir), "no regular file"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_by_name_and_reason(
    folder: CheckpointFolder, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = DAMAGES[kind]
    save(folder, 2)
    damage(save(folder, 3).path)
    with caplog.at_level(logging.WARNING, "hatbus"):
        found = folder.latest()
    assert found is not None
    assert found.path.name == "checkpoint-step-2"
    assert "checkpoint 'checkpoint-step-3' is passed over" in caplog.text
    assert reason in caplog.text


def test_a_folder_link_inside_is_refused(folder: CheckpointFolder, tmp_path: Path) -> None:
    path = save(folder, 1).path
    (path / "plugins").rename(tmp_path / "elsewhere")
    (path / "plugins").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="'plugins' is no folder"):
        manifest.verify(path)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../b", "x" * 100_000, "a//b", ""]
)
def test_a_manifest_that_names_files_outside_is_refused(
    folder: CheckpointFolder, name: str
) -> None:
    path = save(folder, 1).path
    files = {name: {"size": 1, "sha256": "0" * 64}}
    text = manifest.write({**fields(1), "files": files, "content": manifest.content_hash(files)})
    (path / "MANIFEST.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="names a file outside") as caught:
        manifest.verify(path)
    assert len(str(caught.value)) < 300


def test_a_folder_of_damaged_checkpoints_is_an_error_and_no_fresh_start(
    folder: CheckpointFolder,
) -> None:
    for step in (1, 2):
        DAMAGES["zeroed"][0](save(folder, step).path)
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* can be used"):
        folder.latest()


def test_no_mutation_of_a_checkpoint_is_ever_accepted(folder: CheckpointFolder) -> None:
    path = save(folder, 3).path
    chance = random.Random(0)
    whole = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    until, tried = time.monotonic() + 4, 0
    while time.monotonic() < until and tried < 1500:
        tried += 1
        file = chance.choice(list(whole))
        mutated = _mutated(whole[file], chance)
        if mutated == whole[file]:
            continue
        file.write_bytes(mutated)
        with pytest.raises(CheckpointError):
            manifest.verify(path)
        file.write_bytes(whole[file])
    assert tried > 100
    manifest.verify(path)


def _mutated(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    other = chance.randrange(len(data))
    return chance.choice(
        [
            lambda: _flip(data, at),
            lambda: data[:at],
            lambda: data + data[at:],
            lambda: data[:at] + data[at + 1 :],
            lambda: data[:at] + bytes([chance.randrange(256)]) + data[at:],
            lambda: data[: min(at, other)] + bytes(abs(at - other)) + data[max(at, other) :],
            lambda: data[::-1],
            lambda: b"",
            lambda: data[:at] + b'"' + data[at + 1 :],
        ]
    )()


def test_removal_touches_only_the_own_run_and_keeps_newest_and_best(
    folder: CheckpointFolder,
) -> None:
    save(folder, 1, run="other", best=0.0)
    for step, value in ((2, 0.1), (9, 0.5), (10, 0.2), (100, 0.9), (200, None)):
        save(folder, step, best=value)
    gone = superfluous(folder.entries(), "me", 2, [Ranking("", *LOSS, 2)])
    assert [e.manifest["progress"]["global_step"] for e in gone] == [9]
    assert superfluous(folder.entries(), "me", None, [Ranking("", *LOSS)]) == []


def test_only_checkpoints_with_the_metric_of_now_are_ranked_and_the_marked_one_stays(
    folder: CheckpointFolder,
) -> None:
    for step, metric, value in (
        (1, "val/error", 0.1),
        (2, "val/loss", 0.5),
        (3, "val/loss", 0.6),
        (4, "val/error", 0.2),
        (5, "val/loss", 0.7),
        (6, "val/loss", 0.8),
    ):
        save(folder, step, best=value, metric=metric)

    def gone(metric: tuple[str, str | None], marked: str = "") -> list[int]:
        found = superfluous(folder.entries(), "me", 2, [Ranking("", *metric, 1, marked)])
        return [e.manifest["progress"]["global_step"] for e in found]

    assert gone(LOSS) == [1, 3, 4]
    assert gone(LOSS, "checkpoint-step-1") == [3, 4]
    assert gone(("val/error", "min")) == [2, 3, 4]
    assert gone(("val/loss", "max"), "checkpoint-step-2") == [1, 3, 4]
    assert gone(("NoneType", None)) == [1, 2, 3, 4]


def test_fewer_than_two_are_never_kept(folder: CheckpointFolder) -> None:
    for step in (1, 2, 3):
        save(folder, step)
    gone = superfluous(folder.entries(), "me", 1, [Ranking("", *LOSS)])
    assert [e.path.name for e in gone] == ["checkpoint-step-1"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"save_dir .* cannot be written"):
        CheckpointFolder(tmp_path / "file").probe()


def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path / "new" / "deep").probe()
    assert list((tmp_path / "new" / "deep").iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from hatbus_checkpoint.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), "", "first")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_run_is_refused_with_pid_and_host(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(JobError, match=f"process {holder.pid} on .*; wait for it"):
            FolderLock(tmp_path, "", "second")
        holder.kill()
    FolderLock(tmp_path, "", "second").release()
