"""A checkpoint that was moved away and linked to is one, as its folder in place would be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hatbus.errors import CheckpointError
from hatbus_checkpoint.folder import CheckpointFolder

sys.path.insert(0, str(Path(__file__).parent))
from small import tiny

sys.path.pop(0)


def test_a_link_to_a_checkpoint_is_one(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    whole = tiny(tmp_path / "whole").fit(num_steps=5)
    tiny(elsewhere, save_interval=None).fit(num_steps=3)
    (saved,) = CheckpointFolder(elsewhere).entries()
    here.mkdir()
    (here / saved.path.name).symlink_to(saved.path)
    ctx = tiny(here, resume="auto").fit(num_steps=5)
    assert torch.equal(ctx.model.weight, whole.model.weight)


def test_a_link_to_nothing_is_told_and_starts_no_run_anew(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-step-3").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"it is a link to '.*gone', which is not there"):
        tiny(tmp_path, resume="auto").fit(num_steps=1)


def test_retention_removes_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    here, moved = tmp_path / "here", tmp_path / "moved"
    options: dict[str, Any] = {"save_interval": 1, "interval_by": "step", "keep_last": 2}
    tiny(here, **options).fit(num_steps=2)
    oldest = CheckpointFolder(here).entries()[-1].path
    oldest.rename(moved)
    oldest.symlink_to(moved)
    tiny(here, resume="auto", **options).fit(num_steps=4)
    assert not oldest.is_symlink()
    assert (moved / "MANIFEST.json").exists()
    assert len(CheckpointFolder(here).entries()) == 2
