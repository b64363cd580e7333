"""Two processes of which one does something that it should not, and what both say and end with.

``python failing_ranks.py KIND RANK`` is one of them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

TIMEOUT = 4
STEP = 7


class Ended(NamedTuple):
    """How one process ended.

    Attributes:
        code: its exit code; None: it had to be killed.
        seconds: from the step in question on.
        err: what it wrote to stderr.
    """

    code: int | None
    seconds: float
    err: str

    @property
    def errors(self) -> str:
        """The lines of errors alone."""
        return "\n".join(re.findall(r"^hatbus: error: .*", self.err, re.MULTILINE))


def two_of_whom_one_fails(
    kind: str, rank: int, folder: Path, checkout: Path, patience: float = 200
) -> list[Ended]:
    """Runs both; nobody ends one of them because the other has ended."""
    from two_processes import free_port

    environment = {
        **os.environ,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join(map(str, (checkout, checkout / "tests"))),
    }
    logs = [folder / f"{one}.txt" for one in (0, 1)]
    words = [sys.executable, __file__, kind, str(rank), str(folder)]
    running = []
    for one, log in enumerate(logs):
        with log.open("wb") as file:
            mine = {**environment, "RANK": str(one), "LOCAL_RANK": str(one)}
            running.append(subprocess.Popen(words, env=mine, cwd=folder, stderr=file))
    until = time.monotonic() + patience
    ends: dict[int, float] = {}
    try:
        while len(ends) < 2 and time.monotonic() < until:
            for one, process in enumerate(running):
                if one not in ends and process.poll() is not None:
                    ends[one] = time.time()
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()
            process.wait()
    began = float((folder / "began").read_text()) if (folder / "began").exists() else time.time()
    return [
        Ended(
            running[one].returncode if one in ends else None,
            ends.get(one, time.time()) - began,
            logs[one].read_text("utf-8", "replace"),
        )
        for one in (0, 1)
    ]


def raise_an_error() -> None:
    """As a bug does."""
    raise RuntimeError("a bug")


def spin() -> None:
    """As a loop without an end does."""
    while True:
        pass


def meet_alone() -> None:
    """A collective that the other process does not take part in."""
    from torch import distributed

    distributed.barrier()


def add_alone() -> None:
    """Another."""
    import torch
    from torch import distributed

    distributed.all_reduce(torch.ones(3))


DEEDS = {
    "raise": raise_an_error,
    "exit": lambda: sys.exit(0),
    "leave": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sleep": lambda: time.sleep(600),
    "spin": spin,
    "barrier": meet_alone,
    "reduce": add_alone,
}


def data_of(kind: str, *, is_guilty: bool, rank: int) -> Any:
    """What a process trains on."""
    from tiny import batches

    data: Any = batches(20, seed=rank)
    if kind == "nan" and is_guilty:
        data[STEP] = (data[STEP][0] * float("nan"), data[STEP][1])
    if kind == "loader" and is_guilty:
        return data[:15]
    return Endless(data[: 12 if is_guilty else 20]) if kind == "short" else data


class Endless:
    """A loader of no known length."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


def main(kind: str, guilty: int, folder: Path) -> int:
    """One of the two; its exit code."""
    import torch
    from tiny import tiny_trainer

    from hatbus import hookimpl
    from hatbus.callbacks import Checkpoint
    from hatbus.cli import display

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])

    class Boom:
        """Does it."""

        @hookimpl
        def on_step_end(self, ctx, global_step_id):
            if global_step_id == STEP and ctx.rank == guilty:
                (folder / "began").write_text(str(time.time()))
                DEEDS.get(kind, int)()

    data = data_of(kind, is_guilty=rank == guilty, rank=rank)
    words = {"timeout": TIMEOUT, "start_timeout": 100, "seed": int(kind == "seed" and rank)}
    plugins: dict[str, object] = {"boom": Boom()}
    if kind == "unshared":  # each its own disk
        own = folder / f"disk-{rank}"
        own.mkdir()
        os.chdir(own)
        plugins["checkpoint"] = Checkpoint("saved")
    trainer = tiny_trainer(plugins, data, **words)
    try:
        trainer.fit(num_epochs=2)
    except BaseException as error:
        return display.explain(error)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    sys.stderr.flush()
    os._exit(code)
