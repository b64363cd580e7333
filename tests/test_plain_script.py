"""The plain script of the docs and its twin with hatbus run, and find the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import DOCS, all_blocks, done

PAGE = DOCS / "from-a-plain-script.md"
PLAIN, SHORT = (b.text for b in all_blocks(PAGE) if b.language == "python")
LOST = "import json, os; json.dump(found, open('found.json', 'w'))\n"
OF_PLAIN = """
found = {"best": best, "train/loss": train_loss, "val/loss": val_loss, "steps": step}
found |= {"val/accuracy": val_accuracy, "epochs": epoch + 1, "lr": lr}
torch.save(model.state_dict(), "model.pt")
torch.save(averaged.state_dict(), "averaged.pt")
"""
OF_HATBUS = """
ctx = trainer.ctx
found = {n: float(ctx.latest[n]) for n in ("train/loss", "val/loss", "val/accuracy")}
found |= {"best": saving.best.value, "epochs": ctx.position.epoch}
found |= {"steps": ctx.position.global_step, "lr": optimizer.param_groups[0]["lr"]}
torch.save(model.state_dict(), "model.pt")
torch.save(ctx.ema_model.state_dict(), "averaged.pt")
"""


def test_the_plain_script_is_what_it_says_and_hatbus_takes_25_lines() -> None:
    assert len(PLAIN.splitlines()) >= 90
    assert len(SHORT.splitlines()) <= 25
    assert max(map(len, PLAIN.splitlines() + SHORT.splitlines())) <= 100


def ran(folder: Path, script: str, more: str) -> dict[str, Any]:
    """What a script found in a folder of its own, by a process of its own."""
    (folder / "docs/examples").mkdir(parents=True)
    shutil.copytree(DOCS / "examples/digits", folder / "docs/examples/digits")
    (folder / "script.py").write_text(
        "import torch; torch.set_num_threads(1)\n" + script + more + LOST
    )
    done("env", "-C", folder, sys.executable, "script.py")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.skipif(os.name == "nt", reason="env -C is POSIX")
def test_both_find_the_same_numbers(tmp_path: Path) -> None:
    plain = ran(tmp_path / "plain", PLAIN, OF_PLAIN)
    short = ran(tmp_path / "short", SHORT, OF_HATBUS)
    assert short["epochs"] == plain["epochs"]
    assert short["steps"] == plain["steps"] == 45 * plain["epochs"]
    assert short["val/accuracy"] == pytest.approx(plain["val/accuracy"], abs=1e-9)
    assert plain["val/accuracy"] > 0.95
    for name in ("train/loss", "val/loss", "best", "lr"):
        assert short[name] == pytest.approx(plain[name], rel=1e-4), name
    for file in ("model.pt", "averaged.pt"):
        one, two = (torch.load(tmp_path / name / file) for name in ("plain", "short"))
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    saved = tmp_path / "short/runs/hatbus"
    assert (saved / "checkpoint-best.json").is_file()
    assert any((saved / "board").glob("events.out.tfevents.*"))
