"""Files that were damaged, moved or removed are not shared; without links all is written."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from hatbus import hookimpl
from hatbus.errors import CheckpointError
from hatbus_checkpoint import manifest
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.unchanged import unchanged

sys.path.insert(0, str(Path(__file__).parent))
from fine_tuning import fine_tuning, newest_first, states_in

sys.path.pop(0)


@pytest.fixture(autouse=True)
def _small_files_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "LEAST", 64)


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    with path.open("r+b") as file:  # in place: every name of it is damaged
        file.write(data)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_damaged_file_spoils_all_that_share_it_and_with_two_copies_not_the_neighbour(
    tmp_path: Path, copies: int
) -> None:
    fine_tuning(tmp_path, copies=copies, keep_last=2, save_hash=False).fit(num_steps=6)
    newest, before = newest_first(tmp_path)
    damaged(next(p for p in sorted(newest.glob("model-*")) if "00000" not in p.name))
    folder = CheckpointFolder(tmp_path)
    if copies == 1:
        with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* can be used"):
            folder.latest()
        return
    entry = folder.latest()
    assert entry is not None
    assert entry.path == before
    fine_tuning(tmp_path, copies=2, save_hash=False).fit(num_steps=8)
    good = [path for path in newest_first(tmp_path) if path != newest]
    assert [path.name for path in good[:3]] == [f"checkpoint-step-{n}" for n in (8, 7)] + [
        "checkpoint-step-6.2"
    ]
    for path in good:
        manifest.verify(path)


def test_what_was_written_to_in_place_is_not_shared_again(tmp_path: Path) -> None:
    trainer = fine_tuning(tmp_path, {"meddles": Meddles(tmp_path, damaged)}, copies=1)
    trainer.fit(num_steps=4)
    faults = [bool(fault_of(path)) for path in newest_first(tmp_path)]
    assert faults == [False, False, True, True]


def test_what_was_removed_by_hand_is_written_again(tmp_path: Path) -> None:
    trainer = fine_tuning(tmp_path, {"meddles": Meddles(tmp_path, gone)}, copies=1)
    trainer.fit(num_steps=4)
    assert len(newest_first(tmp_path)) == 2
    assert states_in(tmp_path)


@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("name", ["EMLINK", "EXDEV", "EPERM"])
def test_where_a_link_cannot_be_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, async_save: bool
) -> None:
    link, calls = os.link, iter(range(99))

    def fails(*paths: Any) -> None:
        if next(calls) % 3:
            raise OSError(getattr(errno, name), name)
        link(*paths)

    monkeypatch.setattr(os, "link", fails)
    options: dict[str, Any] = {"save_hash": False, "copies": 1, "async_save": async_save}
    fine_tuning(tmp_path / "shared", **options).fit(num_steps=7)
    assert next(calls) > 7
    fine_tuning(tmp_path / "whole", save_hash=False, incremental=False).fit(num_steps=7)
    assert states_in(tmp_path / "shared") == states_in(tmp_path / "whole")


def test_a_file_system_without_links_is_told_and_gets_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*paths: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", fails)
    fine_tuning(tmp_path).fit(num_steps=3)
    assert caplog.text.count("a file cannot have a second name") == 1
    assert {e.manifest["format"] for e in CheckpointFolder(tmp_path).entries()} == {1}


class Meddles:
    """Does something to the files with what stays, before the third step is saved."""

    def __init__(self, place: Path, work: Any) -> None:
        self.place, self.work = place, work

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == 2:
            files = [path / "model-00001.safetensors" for path in newest_first(self.place)]
            self.work(files[0])


def gone(file: Path) -> None:
    for path in newest_first(file.parents[1]):
        shutil.rmtree(path)


def fault_of(path: Path) -> str:
    try:
        manifest.verify(path)
    except CheckpointError as error:
        return str(error)
    return ""
