"""The page on many processes: its commands, here with two agents on one machine as two machines."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, all_blocks
from two_processes import free_port

PAGE = DOCS / "many-processes.md"
SHORT = ["-o", "run.num_epochs=1", "-o", "run.args.batch_size=512", "-o", "run.timeout=60"]


def command(word: str) -> list[str]:
    """The words behind ``torchrun`` of the page's command that has a word."""
    lines = [line for b in all_blocks(PAGE) if b.language == "sh" for line in b.text.splitlines()]
    (found,) = (line for line in lines if word in line)
    assert found.startswith("torchrun ")
    return shlex.split(found)[1:]


@pytest.mark.timeout(400)
def test_two_agents_on_one_machine_are_two_machines(outside, checkout: Path) -> None:
    shutil.copytree(checkout / "docs/examples", outside.cwd / "docs/examples")
    outside.warnings, outside.seconds = "default", 300
    words = [word.replace("node0:29400", f"localhost:{free_port()}") for word in command("node0")]
    launch = [sys.executable, "-m", "torch.distributed.run", *words, *SHORT]
    agents = [outside.start(launch, LOGLEVEL="ERROR") for _ in range(2)]
    ends = [outside.finish(agent) for agent in agents]
    assert [end.code for end in ends] == [0, 0], ends[0].err + ends[1].err
    assert sorted(end.out.count("after ") for end in ends) == [0, 1]


@pytest.mark.timeout(400)
def test_a_job_trains_with_its_model_in_shards(outside, checkout: Path) -> None:
    shutil.copytree(checkout / "docs/examples", outside.cwd / "docs/examples")
    outside.seconds = 300
    launch = [sys.executable, "-m", "torch.distributed.run", *command("fsdp2"), *SHORT]
    end = outside.finish(outside.start(launch, LOGLEVEL="ERROR"))
    assert end.code == 0, end.err
    assert end.out.count("after ") == 1
    (run,) = (outside.cwd / "runs" / "digits").glob("2*")
    assert json.loads((run / "job.json").read_text())["run"]["parallel"] == "fsdp2"


@pytest.mark.timeout(400)
def test_tasks_of_srun_are_one_run(outside, checkout: Path) -> None:
    shutil.copytree(checkout / "docs/examples", outside.cwd / "docs/examples")
    outside.seconds = 300
    step = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "MASTER_PORT": str(free_port()),
    }
    words = [sys.executable, "-m", "hatbus", "run", "docs/examples/digits/job.toml", *SHORT]
    tasks = [
        outside.start(words, **step, SLURM_PROCID=str(task), SLURM_LOCALID=str(task))
        for task in (0, 1)
    ]
    ends = [outside.finish(task) for task in tasks]
    assert [end.code for end in ends] == [0, 0], ends[0].err + ends[1].err
    assert [end.out.count("after ") for end in ends] == [1, 0]
    (run,) = (outside.cwd / "runs" / "digits").glob("2*")
    assert (run / "ranks" / "rank-1.log").is_file()


def test_the_batch_script_is_one_that_bash_reads(tmp_path: Path) -> None:
    (script,) = (b.text for b in all_blocks(PAGE) if b.text.startswith("#!/bin/bash"))
    file = tmp_path / "job.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", str(file)], check=True)
    assert "srun hatbus run" in script
