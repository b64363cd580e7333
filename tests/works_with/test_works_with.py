"""The page of what works with other libraries says what the trials found; and a sample of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from works_with_page import recorded, works_with_page

from works_with import pairs, trial
from works_with.pair import Pair
from works_with.small import Plain


def test_the_page_says_what_the_trials_recorded(checkout: Path) -> None:
    assert (checkout / "docs/works-with.md").read_text("utf-8") == works_with_page(recorded())


def test_every_pair_is_recorded_with_its_verdict_and_the_version_that_is_installed(
    checkout: Path,
) -> None:
    text = (checkout / "requirements-works-with.txt").read_text("utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))
    said = {
        one.key: {"version": pinned[one.library], "verdict": one.verdict, "note": one.note}
        for one in pairs.every()
    }
    assert recorded() == said
    assert len(said) >= 60


@pytest.mark.timeout(600)
def test_a_sample_that_needs_no_other_package_is_as_the_page_says(checkout: Path) -> None:
    command = [sys.executable, "-W", "ignore", "tests/works_with/run.py", "--sample"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tried, bad = re.findall(r"^(\d+) pairs in .*, (\d+) not as said$", done.stdout, re.MULTILINE)[0]
    assert (int(tried) >= 10, bad) == (True, "0")


class Forgets(torch.optim.SGD):
    """Saves a state without its momentum."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "state": {}}


def forgetful(_: Path) -> dict[str, Any]:
    return {
        "model": Plain(),
        "make": lambda m: Forgets(m.parameters(), lr=0.1, momentum=0.9),
    }


def test_a_pair_that_does_not_go_on_exactly_is_found(tmp_path: Path) -> None:
    pair = Pair("Optimizers", "torch", "Forgets", forgetful)
    assert "step 9: other losses" in trial.tried(pair, tmp_path)
