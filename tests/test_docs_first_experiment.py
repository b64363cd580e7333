"""From an empty folder to a fine-tuned, evaluated and used model, by the page's commands alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from pages import DOCS, one_thread, session, write_files
from safetensors.torch import load_file

from hatbus.cli import main

PAGE = DOCS / "first-experiment.md"


def test_at_most_eight_commands_lead_to_a_fine_tuned_and_evaluated_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert [path.name for path in write_files(PAGE, tmp_path)] == [
        "train.py",
        "job.toml",
        "fine.toml",
    ]
    commands = [shlex.split(line) for line in session(PAGE)]
    assert len(commands) <= 8
    shown: dict[str, list[str]] = {}
    with one_thread():
        for program, *words in commands:
            assert (program, main([*words, *["--quiet"] * (words[0] == "run")])) == ("hatbus", 0)
            shown.setdefault(words[0], []).append(capsys.readouterr().out)
    assert "base/2" in shown["runs"][0]
    assert "fine/2" in shown["runs"][0]
    base, fine = (float(text.split("val/accuracy │")[1].split()[0]) for text in shown["evaluate"])
    assert base > 0.9
    assert fine > 0.9
    lines = Path("predictions/predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scores = torch.tensor([row["output"] for row in rows])
    right = scores.argmax(1) == torch.tensor([row["1"] for row in rows])
    assert float(right.double().mean()) == pytest.approx(fine, abs=1e-6)
    assert load_file("best.safetensors")["head.weight"].shape == (3, 64)
