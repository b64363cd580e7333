"""Over sixty failures of one process, and twenty restarts; minutes: ``tox -e ranks``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from failing_ranks import DEEDS, STEP, TIMEOUT, two_of_whom_one_fails

KINDS = (*DEEDS, "short", "nan", "loader", "seed")
"""How one process fails; the other has to say which, where and why."""
CODES = {"raise": (3,), "nan": (7,), "sleep": (3,), "spin": (3,), "kill": (-9,), "leave": (0,)}
CODES |= {"loader": (2,), "seed": (2,), "short": (5, 8, 1), "exit": (3,)}
CODES |= {"barrier": (3, 8), "reduce": (3, 8)}
NO_DEED = ("loader", "seed")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("once_more", [0, 1, 2])
@pytest.mark.parametrize("guilty", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_all_end_and_name_the_guilty_one(
    kind: str, guilty: int, once_more: int, tmp_path: Path, checkout: Path
) -> None:
    ends = two_of_whom_one_fails(kind, guilty, tmp_path, checkout)
    peer = ends[1 - guilty]
    assert None not in [end.code for end in ends], "\n".join(end.err for end in ends)
    assert peer.code == (2 if kind in NO_DEED else 8), peer.err
    assert ends[guilty].code in CODES[kind], ends[guilty].err
    assert f"rank {guilty if kind not in NO_DEED else 1}" in peer.errors, peer.err
    if kind in ("raise", "sleep", "spin", "barrier"):
        assert "plugin 'boom'" in peer.errors
        assert f"step {STEP}" in peer.errors
    patience = TIMEOUT + 10 if os.environ.get("HATBUS_QUIET_MACHINE") else TIMEOUT + 40
    assert kind in NO_DEED or peer.seconds < patience


JOB = """
[run]
entry = "train.py:build"
num_steps = 40
run_dir = "out"
timeout = 20
[plugins.checkpoint]
save_interval = 10
interval_by = "step"
[plugins.validation]
data_loader = "@val_loader"
interval_by = "step"
val_interval = 15
[plugins.dies]
use = "dies.py:Dies"
"""
DIES = """
import json, os, signal, time
from pathlib import Path
import torch
from hatbus import hookimpl


def stop(where, ctx=None):
    '''Sends SIGTERM to whom the environment says, at one place of the first or second start.'''
    place, to = os.environ.get("STOP", " ").split(" ")
    rank = os.environ["RANK"] if ctx is None else str(ctx.rank)
    is_restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if where != place or rank != "1" or is_restart != (where in ("build", "load")):
        return
    if Path("stopped").exists():
        return
    Path("stopped").touch()
    if to == "group":
        os.killpg(os.getpgid(os.getppid()), signal.SIGTERM)
    os.kill(os.getppid() if to == "agent" else os.getpid(), signal.SIGTERM)
    time.sleep(1)


class Dies:
    '''Ends one process in one step of the first start; writes the weights down at the end.'''

    @hookimpl
    def on_step_end(self, ctx, global_step_id):
        time.sleep(float(os.environ.get("SLOW", "0")))
        rank, step, number = json.loads(os.environ["DIES"])
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and ctx.rank == rank and global_step_id == step:
            os.kill(os.getpid(), number)

    @hookimpl(wrapper=True)
    def save_checkpoint(self, ctx):
        stop("save", ctx)
        saved = yield
        stop("saved", ctx)
        return saved

    @hookimpl(wrapper=True)
    def load_checkpoint(self, ctx):
        found = yield
        stop("load", ctx)
        return found

    @hookimpl
    def on_validation_begin(self, ctx):
        stop("validation", ctx)

    @hookimpl
    def on_loop_end(self, ctx):
        if ctx.exception is None and ctx.position.global_step == 40:
            torch.save([p.detach() for p in ctx.model.parameters()], f"end-{ctx.rank}.pt")
"""
TRAIN = """
import torch
from torch.utils.data import TensorDataset
from hatbus.data import loader


def build():
    from dies import stop

    stop("build")
    chance = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 6, generator=chance)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "data": loader(TensorDataset(inputs, inputs.sin().sum(1, keepdim=True)), 4),
        "val_loader": loader(TensorDataset(inputs[:80], inputs[:80, :1]), 4, shuffle=False),
        "loss": torch.nn.functional.mse_loss,
    }
"""


def agent(
    folder: Path, checkout: Path, dies: list[int], *options: str, **more: str
) -> subprocess.Popen[bytes]:
    """Torchrun with two processes of the job, in a session of its own."""
    for name, text in (("job.toml", JOB), ("dies.py", DIES), ("train.py", TRAIN)):
        (folder / name).write_text(text)
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=3",
    ]
    settings = {"PYTHONPATH": str(checkout), "DIES": json.dumps(dies), "OMP_NUM_THREADS": "1"}
    with (folder / "said.txt").open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *words, "-m", "hatbus", "run", "job.toml", *options],
            cwd=folder,
            env={**os.environ, **settings, **more},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def ended(process: subprocess.Popen[bytes], seconds: float = 300) -> int:
    """The exit code of torchrun; it and all its processes are ended after that time.

    Raises:
        TimeoutExpired: it did not end by itself.
    """
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def bits_of(file: Path) -> bytes:
    """The weights in a file; torch writes the file's name into it too."""
    return b"".join(one.numpy().tobytes() for one in torch.load(file))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> bytes:
    """The weights of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ended(agent(folder, checkout, [0, -1, 0])) == 0
    return bits_of(folder / "end-0.pt")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", range(20))
def test_a_restart_comes_back_and_ends_with_the_same_bits(
    number: int, tmp_path: Path, checkout: Path, undisturbed: bytes
) -> None:
    dies = [number % 2, 11 + number, int(signal.SIGKILL)]
    assert ended(agent(tmp_path, checkout, dies)) == 0, (tmp_path / "said.txt").read_text()
    said = (tmp_path / "said.txt").read_text()
    assert "restart 1 by torchrun: going on from the newest checkpoint" in said
    assert bits_of(tmp_path / "end-0.pt") == undisturbed
    assert bits_of(tmp_path / "end-1.pt") == undisturbed
    assert len(list((tmp_path / "out").glob("2*"))) == 1


def started(folder: Path) -> None:
    """Waits until the run has saved once."""
    until = time.monotonic() + 200
    while not list((folder / "out").glob("2*/checkpoint/checkpoint-step-*")):
        assert time.monotonic() < until, (folder / "said.txt").read_text()
        time.sleep(0.1)


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes of an agent."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("to", ["agent", "all", "one"])
def test_a_stop_saves_once_and_is_no_reason_to_start_again(
    to: str, tmp_path: Path, checkout: Path
) -> None:
    process = agent(tmp_path, checkout, [0, -1, 0], SLOW="0.4")
    started(tmp_path)
    workers = workers_of(process)
    pids = {"agent": [process.pid], "all": [process.pid, *workers], "one": workers[1:]}[to]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    ended(process)
    said = (tmp_path / "said.txt").read_text()
    assert said.count("stopped by SIGTERM, state saved") == 1  # of the first process, at its level
    assert said.count("saved checkpoint-step") == 2
    assert "restart 1" not in said
    assert "Traceback" not in said.partition("SignalException")[0].rpartition("stopped by")[0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("to", ["agent", "one", "group"])
@pytest.mark.parametrize("where", ["save", "saved", "validation", "build", "load"])
def test_a_stop_at_a_bad_moment_leaves_a_run_that_ends_with_the_same_bits(
    where: str, to: str, tmp_path: Path, checkout: Path, undisturbed: bytes
) -> None:
    is_restart = where in ("build", "load")
    dies = [0, 17, int(signal.SIGKILL)] if is_restart else [0, -1, 0]
    process = agent(tmp_path, checkout, dies, STOP=f"{where} {to}")
    assert ended(process) != 0
    said = (tmp_path / "said.txt").read_text()
    assert (tmp_path / "stopped").exists(), said
    assert ("restart 1 by torchrun" in said) == is_restart or where == "build", said
    assert "restart 2" not in said
    saved = [line for line in said.splitlines() if "saved checkpoint-step" in line]
    if is_restart:  # at the same step, or the one after, if a step was begun
        assert len(saved) in (1, 2), said
    else:  # the one of the interval, and one for the signal
        assert said.count("stopped by SIGTERM, state saved") == 1, said
        assert len(set(saved)) == 2, said
    assert not (tmp_path / "end-0.pt").exists()
    assert ended(agent(tmp_path, checkout, [0, -1, 0], "-o", "run.resume=auto")) == 0
    assert bits_of(tmp_path / "end-0.pt") == undisturbed
    assert bits_of(tmp_path / "end-1.pt") == undisturbed


@pytest.mark.timeout(400)
def test_processes_end_when_their_agent_has_gone(tmp_path: Path, checkout: Path) -> None:
    process = agent(tmp_path, checkout, [0, -1, 0], SLOW="0.4")
    started(tmp_path)
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert (tmp_path / "said.txt").read_text().count("saved checkpoint-step") == 2
