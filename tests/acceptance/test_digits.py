"""The two jobs of ``docs/examples`` as a user runs them, from a folder of the user's own."""

from __future__ import annotations

import json

import pytest
from stranger import install

from hatbus.runs import run_folder

LOSSES = """
    from hatbus import hookimpl, plugin

    @plugin(stage="report")
    class Losses:
        def __init__(self, path: str):
            self.path, self.lines = path, []

        @hookimpl
        def on_step_end(self, losses):
            self.lines.append(losses["loss"].item().hex())

        @hookimpl
        def on_loop_end(self, model):
            bits = [float(p.double().sum()).hex() for p in model.state_dict().values()]
            open(self.path, "w").write("\\n".join([*self.lines, *bits]))
"""


@pytest.mark.timeout(300)
def test_the_digits_job_learns_and_its_table_says_what_its_files_say(outside, checkout) -> None:
    outside.seconds = 240
    job = checkout / "docs/examples/digits/job.toml"
    done = outside.hatbus("run", job, "-p", "jsonl_log")
    assert done.code == 0, done.err
    assert done.metrics["val/accuracy"] >= 0.97
    assert "after 360 steps" in done.out
    assert "epoch 8/8" in done.err
    assert "\x1b" not in done.out + done.err

    assert "files: runs/digits/2" in done.out
    run = run_folder(outside.cwd / "runs" / "digits")
    published: dict[str, float] = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        published.update(json.loads(line))
    shown = {name: pytest.approx(value, rel=1e-5) for name, value in done.metrics.items()}
    assert {name: published[name] for name in shown} == shown
    written = json.loads((run / "job.json").read_text())
    assert written["run"]["num_epochs"] == 8
    assert written["plugins"]["jsonl_log"] == {"use": "jsonl_log", "enabled": True}
    names = {path.name for path in run.rglob("checkpoint-*.json")}
    assert names == {"checkpoint-best.json", "checkpoint-last.json"}
    assert {p.name for p in outside.cwd.iterdir()} == {"runs"}
    evaluated = outside.hatbus("evaluate", run, "--json")
    assert evaluated.code == 0, evaluated.err
    again = json.loads(evaluated.out)["metrics"]
    assert again == {"val/accuracy": published["val/accuracy"]}  # to the last bit


@pytest.mark.timeout(300)
def test_a_run_without_its_progress_bar_is_the_same_to_the_last_bit(outside, checkout) -> None:
    outside.seconds = 120
    entry_points = {"losses": "acme_losses:Losses"}
    install(outside.site, "acme-losses", entry_points, {"acme_losses.py": LOSSES})
    job = checkout / "docs/examples/digits/job.toml"
    short = ("-p", "losses", "-p", "no:checkpoint", "-o", "run.num_epochs=1", "-o")
    off = ("-p", "no:progress", "-p", "no:stats_monitor", "-p", "no:train_metrics")
    whole = outside.hatbus("run", job, *short, "losses.path=whole.txt")
    bare = outside.hatbus("run", job, *short, "losses.path=bare.txt", *off)
    assert (whole.code, bare.code) == (0, 0), whole.err + bare.err
    assert "epoch 1/1" in whole.err
    assert "epoch 1/1" not in bare.err
    assert "train/accuracy" in whole.metrics
    assert "train/accuracy" not in bare.metrics
    lines = (outside.cwd / "whole.txt").read_text().splitlines()
    assert len(set(lines)) > 45
    assert (outside.cwd / "bare.txt").read_text().splitlines() == lines


@pytest.mark.timeout(300)
def test_the_multitask_job_learns_both_tasks(outside, checkout) -> None:
    outside.seconds = 240
    job = checkout / "docs/examples/multitask/job.toml"
    done = outside.hatbus("run", job)
    assert done.code == 0, done.err
    assert done.metrics["val/digit/accuracy"] >= 0.97
    assert done.metrics["val/turn/accuracy"] >= 0.88  # of four turns; 6 and 9 look alike
    assert {"train/digit/accuracy", "train/turn/accuracy"} <= set(done.metrics)
    assert "after 540 steps" in done.out
    assert (run_folder(outside.cwd / "runs/multitask") / "job.json").exists()
