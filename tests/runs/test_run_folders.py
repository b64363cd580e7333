"""Every run has a folder of its own, and nothing in another's is touched."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from stranger import CHECKOUT
from tiny import batches, tiny_trainer
from torch import nn

from hatbus import Context, Trainer, hookimpl
from hatbus.callbacks import Checkpoint, JsonlLog
from hatbus.cli import main
from hatbus.errors import JobError
from hatbus.jobs.job import read_job
from hatbus.runs import run_folder
from hatbus.runs.folders import Wanted, claim

ENTRY = """
import os, time
import torch
from hatbus import hookimpl
from hatbus.data import loader

def build(lr: float = 0.1):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(24, 3)
    data = loader(torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True)), 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, data, torch.nn.functional.mse_loss

class Watch:
    @hookimpl
    def on_step_end(self, ctx, losses, global_step_id):
        ctx.log({"loss": losses["loss"].item()})
        if str(global_step_id) == os.environ.get("HANG_AT"):
            print("hangs", flush=True)
            time.sleep(100)
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 3
[plugins.checkpoint]
save_hash = false
[plugins.jsonl_log]
flush_every = 1
[plugins.watch]
use = "train.py:Watch"
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(ENTRY)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "runs" / tmp_path.name


def runs_in(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def steps(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["event"] == "step"]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def start(*words: str, **env: str) -> subprocess.Popen[str]:
    settings = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **env}
    command = [sys.executable, "-m", "hatbus", "run", "job.toml", *words]
    return subprocess.Popen(command, env=settings, stdout=-1, stderr=-2, text=True)


def forked(*words: str) -> int:
    """A run in a process of its own, which has torch already."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = main(["run", "job.toml", "--quiet", *words])
        finally:
            os._exit(code)
    return child


def test_the_same_job_again_and_another_job_touch_no_file_of_the_first(job: Path) -> None:
    assert main(["run", "job.toml", "--quiet"]) == 0
    (first,) = runs_in(job)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", first.name)
    before = contents(first)
    assert main(["run", "job.toml", "--quiet"]) == 0
    Path("other.toml").write_text(JOB.replace("num_epochs = 3", "num_epochs = 1"))
    assert main(["run", "other.toml", "--quiet"]) == 0
    assert contents(first) == before
    _, second, third = runs_in(job)
    assert run_folder(job) == run_folder(job / "latest") == third
    assert steps(second) == steps(first) == list(range(18))
    assert (second / "checkpoint/checkpoint-last.json").exists()


@pytest.mark.timeout(240)
def test_ten_started_at_once_get_ten_folders(job: Path) -> None:
    started = [forked("-o", "run.num_epochs=1") for _ in range(10)]
    assert [os.waitpid(pid, 0)[1] for pid in started] == [0] * 10
    found = runs_in(job)
    assert len(found) == 10
    for folder in found:
        assert steps(folder) == list(range(6))
        assert summary(folder)["state"] == "finished"
    assert {summary(folder)["process"]["pid"] for folder in found} == set(started)
    ends = {(f / "checkpoint/checkpoint-epoch-0001/model.safetensors").read_bytes() for f in found}
    assert len(ends) == 1  # of one job, to the last bit


@pytest.mark.parametrize("at", [3, 15])
def test_a_killed_run_goes_on_in_its_own_folder_by_the_same_command(job: Path, at: int) -> None:
    same = ["-o", "run.args.lr=0.05", "-o", "run.resume=auto"]
    killed = start(*same, HANG_AT=str(at))
    assert killed.stdout is not None
    while "hangs" not in killed.stdout.readline():
        assert killed.poll() is None
    assert main(["run", "job.toml", *same]) == 2  # still going on
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (own,) = runs_in(job)
    assert main(["run", "job.toml", "-o", "run.args.lr=0.1"]) == 0
    assert main(["run", "job.toml", *same]) == 0
    assert len(runs_in(job)) == 2
    assert steps(own) == list(range(18))
    assert summary(own)["state"] == "finished"
    assert summary(own)["steps"] == 18
    assert main(["run", "job.toml", "-o", "run.args.lr=0.05"]) == 0
    whole = run_folder(job)
    assert whole != own
    last = "checkpoint/checkpoint-epoch-0003/model.safetensors"
    assert (own / last).read_bytes() == (whole / last).read_bytes()
    rows = [
        [{**json.loads(line), "time": 0} for line in (one / "log.jsonl").read_text().splitlines()]
        for one in (own, whole)
    ]
    assert rows[0] == rows[1]
    history = [(one / "history.jsonl").read_text() for one in (own, whole)]
    assert history[0] == history[1]


def test_a_run_that_was_changed_otherwise_is_not_gone_on_with_and_is_named(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "job.toml", "--quiet"]) == 0
    (first,) = runs_in(job)
    before = contents(first)
    changed = ["run", "job.toml", "-o", "run.args.lr=0.2", "-o", "run.resume=auto"]
    assert main(changed) == 0
    said = capsys.readouterr().err
    assert f"`hatbus resume {first.relative_to(Path.cwd())}` goes on with" in said
    assert contents(first) == before
    assert len(runs_in(job)) == 2
    assert main([*changed, "-o", "run.num_epochs=4"]) == 0  # longer, but the same
    assert len(runs_in(job)) == 2
    assert main(["run", "job.toml", "-o", "run.args.lr=0.3", "-o", "run.resume=best"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("hatbus: error: resume is 'best', and there is no earlier run")
    assert len(runs_in(job)) == 2


def test_a_second_run_of_one_name_is_refused_goes_on_or_moves_the_first_aside(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["run", "job.toml", "-o", "run.name=base"]
    assert main([*named, "-o", "run.num_epochs=1"]) == 0
    before = contents(job / "base")
    capsys.readouterr()
    assert main(named) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        f"hatbus: error: there is a run in 'runs/{job.name}/base' already; go on"
    )
    assert contents(job / "base") == before
    assert main([*named, "-o", "run.resume=auto"]) == 0
    assert steps(job / "base") == list(range(18))
    before = contents(job / "base")
    assert main([*named, "-o", "run.resume=new"]) == 0
    (aside,) = job.glob("base-until-*")
    assert contents(aside) == before
    assert steps(job / "base") == list(range(18))


def test_a_jobs_own_auto_is_put_off_for_a_new_run(job: Path) -> None:
    Path("job.toml").write_text(JOB.replace("save_hash", 'resume = "auto"\nsave_hash'))
    for more, many in (([], 1), ([], 1), (["-o", "run.resume=new"], 2)):
        assert main(["run", "job.toml", "--quiet", *more]) == 0
        assert len(runs_in(job)) == many
    assert steps(run_folder(job)) == list(range(18))


def test_a_run_that_is_refused_leaves_no_folder(job: Path) -> None:
    assert main(["run", "job.toml", "-o", "run.args.lr=-1"]) == 1
    assert main(["run", "job.toml", "-o", "run.name=x", "-o", "checkpoint.mode=most"]) == 2
    assert not job.exists() or not runs_in(job)


@pytest.mark.parametrize("name", ["a/b", "..", "latest", ".hidden", ""])
def test_what_is_no_name_of_a_folder_is_refused(
    job: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "job.toml", "-o", f'run.name="{name}"']) == 2
    assert "accepted: the name of a folder" in capsys.readouterr().err
    with pytest.raises(JobError, match=r"run_name is .*; accepted: the name of a folder"):
        trainer(job, run_name=name)


def test_a_checkpoints_path_begins_a_new_run_from_it(job: Path) -> None:
    assert main(["run", "job.toml", "-o", "run.num_epochs=1"]) == 0
    (first,) = runs_in(job)
    before = contents(first)
    assert main(["run", "job.toml", "-o", f'run.resume="{job}"']) == 0  # the newest there
    assert contents(first) == before
    assert steps(run_folder(job)) == list(range(6, 18))


def test_job_json_is_a_job_for_a_new_run(job: Path) -> None:
    assert main(["run", "job.toml", "-o", "run.num_epochs=1"]) == 0
    (first,) = runs_in(job)
    assert read_job(first / "job.json").place == job
    assert main(["run", str(first / "job.json"), "-o", "run.num_epochs=1"]) == 0
    assert len(runs_in(job)) == 2


def trainer(place: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.ones(4, 3), torch.ones(4, 1))] * 4
    plugins = [Says(), JsonlLog(), *options.pop("plugins", [])]
    return Trainer(
        model, optimizer, data, nn.functional.mse_loss, plugins, run_dir=place, **options
    )


class Says:
    @hookimpl
    def on_step_end(self, ctx: Any, losses: Any) -> None:
        ctx.log({"loss": losses["loss"].item()})


def test_a_trainers_run_has_a_folder_of_its_own_that_a_second_fit_goes_on_in(
    tmp_path: Path,
) -> None:
    first = trainer(tmp_path)
    assert first.fit(num_epochs=1).run_dir == run_folder(tmp_path)
    before = contents(run_folder(tmp_path))
    second = trainer(tmp_path)
    second.fit(num_epochs=1)
    assert contents(runs_in(tmp_path)[0]) == before
    first.fit(num_epochs=2)
    assert [steps(one) for one in runs_in(tmp_path)] == [list(range(8)), list(range(4))]


@pytest.mark.parametrize("by", ["trainer", "checkpoint"])
def test_a_script_goes_on_in_the_folder_of_its_newest_run(tmp_path: Path, by: str) -> None:
    def go(epochs: int, **options: Any) -> int:
        saving = Checkpoint(str(tmp_path / "saved"), resume=options.pop("own", None))
        one = trainer(tmp_path / "runs", plugins=[saving], **options)
        one.fit(num_epochs=epochs)
        return one.ctx.began_at

    assert go(1) == 0
    assert go(2, **({"resume": "auto"} if by == "trainer" else {"own": "auto"})) == 4
    (folder,) = runs_in(tmp_path / "runs")
    assert steps(folder) == list(range(8))


def test_a_named_run_of_a_trainer_is_not_written_over(tmp_path: Path) -> None:
    trainer(tmp_path, run_name="base").fit(num_epochs=1)
    before = contents(tmp_path / "base")
    with pytest.raises(JobError, match=r"there is a run in .*base' already; go on with it"):
        trainer(tmp_path, run_name="base").fit(num_epochs=1)
    assert contents(tmp_path / "base") == before
    trainer(tmp_path, run_name="base", resume="new").fit(num_epochs=1)
    (aside,) = tmp_path.glob("base-until-*")
    assert contents(aside) == before


def test_folders_of_one_second_sort_as_they_were_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _form: "2026-11-30_03-00-00")
    held = [claim(Wanted(tmp_path)) for _ in range(12)]
    names = [one.path.name for one in held]
    assert names == sorted(names)
    assert len(set(names)) == 12


class Looks:
    """Reads the run's summary after every step, as somebody does after a kill."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    @hookimpl
    def on_step_begin(self, ctx: Context) -> None:
        assert ctx.run_dir is not None
        self.seen.append((ctx.global_step_id, summary(ctx.run_dir)["steps"]))


def test_the_summary_of_a_run_knows_its_newest_checkpoint_in_the_middle_of_an_epoch(
    tmp_path: Path,
) -> None:
    looks = Looks()
    saves = Checkpoint(str(tmp_path / "saved"), save_interval=2, interval_by="step")
    tiny_trainer([looks, saves], data=batches(6), run_dir=tmp_path).fit(num_epochs=1)
    assert looks.seen[:5] == [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4)]
