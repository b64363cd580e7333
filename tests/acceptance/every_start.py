"""The page on many processes, run: its first command, its script for SLURM, its manifest for
Kubernetes, each with two processes of this machine; minutes: ``tox -e ranks``."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import DOCS, all_blocks
from two_processes import free_port

PAGE = DOCS / "many-processes.md"
SHORT = ["-o", "run.num_epochs=2", "-o", "run.args.batch_size=512", "-o", "run.timeout=60"]
SRUN = f"""#!/bin/bash
# Two tasks of a step on one node; the code of the step is the highest of its tasks.
shift
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=0 SLURM_LOCALID=0 {sys.executable} -m hatbus "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 {sys.executable} -m hatbus "$@" & second=$!
echo $first $second > tasks
code=0
for task in $first $second; do wait $task; c=$?; [ $c -gt $code ] && code=$c; done
exit $code
"""
SCONTROL = "#!/bin/bash\necho $* >> asked\n"


def block(start: str) -> str:
    """The page's block that begins so."""
    (found,) = (b.text for b in all_blocks(PAGE) if b.text.startswith(start))
    return found


def examples(folder: Path, checkout: Path) -> None:
    """The examples, with the job under the name that the page has for it."""
    shutil.copytree(checkout / "docs/examples", folder / "docs/examples")
    shutil.copy(folder / "docs/examples/digits/job.toml", folder / "docs/examples/digits/own.toml")


@pytest.mark.timeout(600)
def test_the_command_for_one_machine(outside, checkout: Path) -> None:
    examples(outside.cwd, checkout)
    outside.warnings, outside.seconds = "default", 500
    lines = [line for b in all_blocks(PAGE) if b.language == "sh" for line in b.text.splitlines()]
    line = next(line for line in lines if "--standalone" in line)
    words = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line)[1:], *SHORT]
    ended = outside.finish(outside.start(words))
    assert ended.code == 0, ended.err
    assert "val/accuracy" in ended.out


def saved_once(folder: Path) -> None:
    """Waits until a run has saved."""
    until = time.monotonic() + 300
    while not list(folder.glob("**/checkpoint-epoch-*")):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.timeout(900)
def test_the_script_for_slurm_is_requeued_and_goes_on(outside, checkout: Path) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (outside.cwd / name).write_text(text)
        (outside.cwd / name).chmod(0o755)
    examples(outside.cwd, checkout)
    outside.warnings, outside.seconds = "default", 700
    job = "docs/examples/digits/own.toml"
    script = block("#!/bin/bash").replace("run job.toml", f"run {job} {shlex.join(SHORT)}")
    assert job in script
    settings = {
        "SLURM_JOB_ID": str(free_port()),
        "PATH": f"{outside.cwd}{os.pathsep}{os.environ['PATH']}",
        "MASTER_PORT": str(free_port()),
    }
    longer = script.replace("run.num_epochs=2", "run.num_epochs=500")
    first = outside.start(["bash", "-c", longer], **settings)
    saved_once(outside.cwd)
    for task in (outside.cwd / "tasks").read_text().split():  # as --signal=TERM@120 does
        os.kill(int(task), signal.SIGTERM)
    ended = outside.finish(first)
    assert "stopped by SIGTERM, state saved" in ended.err, ended.err
    asked = f"requeue {settings['SLURM_JOB_ID']}\n"
    assert (outside.cwd / "asked").read_text() == asked
    again = outside.finish(outside.start(["bash", "-c", longer.replace("=500", "=4")], **settings))
    assert "val/accuracy" in again.out, again.err
    assert (outside.cwd / "asked").read_text() == asked
    assert len(list((outside.cwd / "docs/examples/digits/runs/digits").glob("*"))) <= 2


def pods() -> list[dict[str, Any]]:
    """The containers that the manifest asks for, the first one's first."""
    manifest = yaml.safe_load(block("apiVersion: kubeflow.org/v1"))
    assert manifest["kind"] == "PyTorchJob"
    parts = manifest["spec"]["pytorchReplicaSpecs"]
    assert parts["Master"]["replicas"] == 1
    found = []
    for part in (parts["Master"], parts["Worker"]):
        pod = part["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= 60
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"  # which the operator looks for
        assert {m["name"] for m in container["volumeMounts"]} <= {v["name"] for v in pod["volumes"]}
        found += [container] * part["replicas"]
    return found


@pytest.mark.timeout(900)
def test_pods_that_are_evicted_go_on(outside, checkout: Path) -> None:
    examples(outside.cwd, checkout)
    outside.warnings, outside.seconds = "default", 700
    (outside.cwd / "volume").mkdir()
    command = [
        word.replace("/job/job.toml", "docs/examples/digits/own.toml").replace(
            "/runs", str(outside.cwd / "volume")
        )
        for word in pods()[0]["command"]
    ]
    assert command[0] == "hatbus"

    def started(epochs: int) -> list[Any]:
        """Two pods, with what the operator sets."""
        port = str(free_port())
        words = [sys.executable, "-m", *command, *SHORT, "-o", f"run.num_epochs={epochs}"]
        settings = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        return [outside.start(words, **settings, RANK=str(rank)) for rank in (0, 1)]

    running = started(500)
    saved_once(outside.cwd / "volume")
    for pod in running:
        pod.send_signal(signal.SIGTERM)
    assert [outside.finish(pod).code for pod in running] == [75, 75]
    ends = [outside.finish(pod) for pod in started(4)]
    assert [end.code for end in ends] == [0, 0], ends[0].err + ends[1].err
    assert len(list((outside.cwd / "volume").glob("digits"))) == 1
