"""``run.log``: a run's log is in its folder, whatever the terminal shows and however it ends."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stranger import write_job

from hatbus.cli import main
from hatbus.jobs.run_log import logged
from hatbus.log import log
from hatbus.runs import run_folder


@pytest.fixture(autouse=True)
def _log_as_before():
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = before[0], before[2]
    log.setLevel(before[1])


def lines(folder: Path) -> list[str]:
    """Without their times."""
    said = re.split(r"^\d{4}-\d\d-\d\d \S+ ", (folder / "run.log").read_text(), flags=re.MULTILINE)
    return [one.strip() for one in said if one]


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_run_writes_what_it_logs_quiet_or_not_and_a_run_that_goes_on_adds_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet
) -> None:
    job = write_job(tmp_path, "[plugins.stats_monitor]\n[plugins.checkpoint]\n")
    monkeypatch.chdir(tmp_path)
    words = ["run", str(job), "-o", "run.run_dir=.", "-o", "run.name=here", *quiet]
    assert main(words) == main([*words, "-o", "run.resume=auto"]) == 0
    found = lines(tmp_path / "here")
    assert found[0].startswith("INFO    job.toml with hatbus 0.1.0 begins")
    assert "INFO    epoch 1/2 begins" in found
    assert [line.endswith("with hatbus 0.1.0 ends") for line in found].count(True) == 2
    printed = capsys.readouterr()
    assert ("epoch 1/2 begins" in printed.err) == (not quiet)
    assert ("history.jsonl  job.json  plan.json  run.json  run.log" in printed.out) == (not quiet)
    assert not any(isinstance(handler, logging.FileHandler) for handler in log.handlers)


def fail(folder: Path, error: BaseException) -> None:
    with logged(folder, "it") as book:
        book.open()
        raise error


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (ValueError("what happened"), "ERROR   it fails: ValueError: what happened"),
        (SystemExit(75), "INFO    it ends with exit code 75"),
    ],
)
def test_the_last_line_says_how_it_ended(tmp_path: Path, error: BaseException, last: str) -> None:
    with pytest.raises(type(error)):
        fail(tmp_path, error)
    assert lines(tmp_path)[-1] == last


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    with logged(tmp_path / "nowhere", "it") as book:
        book.open()
    (tmp_path / "run.log").symlink_to("/dev/full")
    with logged(tmp_path, "it") as book:
        book.open()
        log.warning("no room for this")


def test_an_error_of_a_run_without_a_log_file_is_not_the_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        fail(tmp_path / "absent", ValueError("mine"))
    assert caught.value.__context__ is None


TRAIN = """
import logging, sys, warnings
import torch
from hatbus import hookimpl

def build(fails: bool = False, log: bool = False):
    warnings.warn("of the model")
    if log:
        logging.basicConfig(format="mine: %(message)s")
    model = torch.nn.Linear(2, 1)
    data = [(torch.ones(2, 2), torch.ones(2, 1))] * 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, data, torch.nn.functional.mse_loss

class Talks:
    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    @hookimpl
    def on_step_end(self, ctx, global_step_id):
        print("printed", global_step_id)
        warnings.warn(f"of step {global_step_id}")
        logging.getLogger("theirs").warning("logged %d", global_step_id)
        logging.getLogger("theirs").info("not shown")
        ctx.log({"a[b] :smile:": 1.5})
        if self.fails and global_step_id == 1:
            raise ZeroDivisionError("what happened")
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 1
run_dir = "run[1] [/2] :smile:"
[plugins.talks]
use = "train.py:Talks"
"""


@pytest.fixture
def shell(tmp_path: Path):
    """Runs a line of the shell in a folder with a job whose code talks."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "job.toml").write_text(JOB)

    def call(line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-o", "pipefail", "-c", line.replace("hatbus", "$PY -m hatbus", 1)]
        environment = {**os.environ, "PY": sys.executable, "COLUMNS": "100"}
        return subprocess.run(
            command, cwd=tmp_path, text=True, capture_output=True, check=False, env=environment
        )

    return call


def folder_of(tmp_path: Path) -> Path:
    return run_folder(tmp_path / "run[1] [/2] :smile:")


@pytest.mark.parametrize("more", ["", " -o run.args.log=true"])
def test_the_file_has_the_users_warnings_and_logs_and_the_results(tmp_path, shell, more) -> None:
    said = shell("hatbus run job.toml" + more)
    assert said.returncode == 0, said.stderr
    text = (folder_of(tmp_path) / "run.log").read_text()
    for part in ("of the model", "of step 0", "of step 2", "logged 2"):
        assert text.count(part) == said.stderr.count(part) > 0, part
    assert "not shown" not in text + said.stderr
    for part in ("a[b] :smile:", "1.5", "files: run[1] [/2] :smile:", "job.json  plan.json"):
        assert part in text, part
        assert part in said.stdout, part


def test_the_file_has_the_traceback_with_plugin_event_and_step(tmp_path, shell) -> None:
    said = shell("hatbus run job.toml -o talks.fails=true")
    assert said.returncode == 3
    found = lines(folder_of(tmp_path))
    where = "in plugin 'talks' (train.py), on_step_end, step 1"
    assert found[-1] == (
        f"ERROR   job.toml with hatbus 0.1.0 fails: ZeroDivisionError: what happened ({where})"
    )
    assert found[-2].startswith("ERROR   Traceback (most recent call last):")
    assert found[-2].endswith(f"ZeroDivisionError: what happened\n{where}")
    assert found[-2][found[-2].index('train.py", line') :] in said.stderr


def test_a_job_that_is_refused_leaves_no_file(tmp_path, shell) -> None:
    assert shell("hatbus run job.toml -o talks.fails=3").returncode == 2
    assert not folder_of(tmp_path).exists()


@pytest.mark.parametrize(
    "line",
    [
        "hatbus run job.toml 2>&1 | head -n 1",
        "hatbus run job.toml >&- 2>&-",
        "hatbus run job.toml > /dev/full",
    ],
)
def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path, shell, line) -> None:
    said = shell(line)
    assert said.returncode == 0, said.stderr
    assert "Traceback" not in said.stderr
    assert lines(folder_of(tmp_path))[-1].endswith("with hatbus 0.1.0 ends")


def test_a_list_that_nobody_reads_is_no_error(shell) -> None:
    for line in ("hatbus plugins list | true", "hatbus plugins list >&-"):
        said = shell(line)
        assert (said.returncode, said.stderr) == (0, "")


def test_a_list_that_cannot_be_written_is_one(shell) -> None:
    said = shell("hatbus plugins list > /dev/full")
    where = "hatbus: error: cannot write to stdout: No space left on device\n"
    assert (said.returncode, said.stderr) == (6, where)
