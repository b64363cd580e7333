"""Kills the digits job again and again at random moments until it gets through; or terminates it.

As a program: ``digits_kills.py FOLDER COUNT SEED WORKERS [--terminate]`` prints one line of JSON:
how often a run was hit in which phase, what went wrong, and how many runs ended with the same bytes
as one that was left alone. ``--terminate`` sends SIGTERM to the whole process group instead, and
wants exit code 75 every time.

Every life is ``hatbus run`` in a process of its own, forked from one that has run the job once, so
that a start takes a tenth of a second. Three quarters of the moments are random times since the
start, the others random times since the first step; both are measured on this very machine.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from stranger import CHECKOUT, install

from hatbus import cli
from hatbus.jobs import jobrun  # noqa: F401 - jobrun imports torch, once for all lives

SAVED_AND_STOPPED = 75
BEFORE = ("", "start", "resume")
TRAINED = ("model", "optim", "plugins/ema")
PHASES = """
    import os
    from hatbus import hookimpl, plugin

    @plugin(stage="setup")
    class Phases:
        def __init__(self, path: str):
            self.file = os.open(path, os.O_RDWR | os.O_CREAT)

        def say(self, phase):
            os.pwrite(self.file, phase.ljust(8).encode(), 0)

        @hookimpl
        def on_loop_begin(self):
            self.say("resume")

        @hookimpl
        def on_step_begin(self):
            self.say("step")

        @hookimpl(wrapper=True)
        def validate(self):
            self.say("validate")
            return (yield)

        @hookimpl(wrapper=True)
        def save_checkpoint(self):
            self.say("save")
            return (yield)

        @hookimpl
        def on_loop_end(self):
            self.say("end")
"""
OPTIONS = {
    "run.num_epochs": 1,
    "checkpoint.interval_by": "step",
    "checkpoint.save_interval": 2,
    "checkpoint.keep_last": 2,
    "validation.interval_by": "step",
    "validation.val_interval": 7,
}


class Lives:
    """Lives of one job in one place, and where each stands."""

    def __init__(self, place: Path, workers: int) -> None:
        entry_points = {"phases": "acme_phases:Phases"}
        install(place / "installed", "acme-phases", entry_points, {"acme_phases.py": PHASES})
        sys.path.insert(0, str(place / "installed"))
        self._place, self._workers = place, workers
        self._phase = os.open(place / "phase", os.O_RDWR | os.O_CREAT)

    @property
    def phase(self) -> str:
        return os.pread(self._phase, 8, 0).decode().strip()

    def start(self, name: str) -> int:
        """Starts or resumes a run; its process, the leader of a group."""
        os.pwrite(self._phase, b"start   ", 0)
        child = os.fork()
        if child == 0:
            self._live(name)
        return child

    def run(self, name: str) -> int:
        """One life in this process."""
        options = {
            **OPTIONS,
            "run.run_dir": self._place,
            "run.name": name,
            "run.args.num_workers": self._workers,
            "checkpoint.resume": "auto",
            "phases.path": self._place / "phase",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        chosen = ["-p", "ema", "-p", "phases", "-p", "no:progress", "-p", "no:stats_monitor"]
        job = str(CHECKOUT / "docs/examples/digits/job.toml")
        return cli.main(["run", job, "--quiet", *chosen, *words])

    def _live(self, name: str) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            code = self.run(name)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except BaseException:
            traceback.print_exc()
        os._exit(code)

    def end_of(self, name: str) -> tuple[int, dict[str, str]]:
        """Step, and hashes of the files, of the newest checkpoint."""
        from hatbus_checkpoint.folder import CheckpointFolder

        newest = CheckpointFolder(self._place / name / "checkpoint").latest()
        assert newest is not None
        files = {name: file["sha256"] for name, file in newest.manifest["files"].items()}
        return newest.manifest["progress"]["global_step"], files


def wait(child: int, seconds: float, until: Any = None) -> int | None:
    """The exit code of a child (negative: its signal); None when it runs for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (until and until()):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def hit(child: int, number: int) -> int | None:
    """Sends a signal to the group of a child, and waits for its end."""
    try:
        os.killpg(child, number)
    except ProcessLookupError:
        os.kill(child, number)
    return wait(child, 60)


class Hunt:
    """Hits runs until there were enough hits; then lets the last one end."""

    def __init__(self, lives: Lives, count: int, seed: int, *, terminate: bool) -> None:
        self.lives, self.count, self.terminate = lives, count, terminate
        self.chance = random.Random(seed)
        self.phases: Counter[str] = Counter()
        self.bad: list[str] = []
        self.runs = self.right = 0
        self.starting, self.whole = self._measured()
        self.step, self.files = lives.end_of("whole")

    def _measured(self) -> tuple[float, float]:
        """Seconds until the first step of a life, and seconds of a whole run; after a first run."""
        assert self.lives.run("whole") == 0
        began = time.monotonic()
        child = self.lives.start("measured")
        code = wait(child, 60, lambda: self.lives.phase not in BEFORE)
        first = time.monotonic()
        assert (code if code is not None else wait(child, 60)) == 0
        return first - began, time.monotonic() - first

    def hunt(self) -> dict[str, Any]:
        while sum(self.phases.values()) < self.count and not self.bad:
            name = f"run-{self.runs}"
            while not self.is_over(name):
                pass
            self.runs += 1
            self.right += not self.bad and self.is_right(name)
        found = {"hits": sum(self.phases.values()), "phases": dict(self.phases), "bad": self.bad}
        return found | {"runs": self.runs, "right": self.right}

    def is_right(self, name: str) -> bool:
        """Whether a run ended as the one that was left alone.

        No step is saved twice. So a run that was terminated in its last step, or in the validation
        after it, has saved that without what comes after: there what was trained is compared.
        """
        step, files = self.lives.end_of(name)
        differ = {n for n in {*files, *self.files} if files.get(n) != self.files.get(n)}
        if self.terminate:
            differ = {n for n in differ if n.startswith(TRAINED)}
        return step == self.step and not differ

    def is_over(self, name: str) -> bool:
        """One life; whether the run came to its end, or something went wrong."""
        child = self.lives.start(name)
        code = self.until_the_moment(child)
        if code is not None:
            if code != 0:
                self.bad.append(f"ended by itself with {code} in {self.lives.phase!r}")
            return True
        phase = self.lives.phase
        code = hit(child, signal.SIGTERM if self.terminate else signal.SIGKILL)
        is_gone = self.terminate and code == -signal.SIGTERM  # handlers go with the loop
        if code == 0 or (is_gone and self.lives.end_of(name)[0] == self.step):
            return True  # the run was over already: its last step was saved
        self.phases[phase] += 1
        if code != (SAVED_AND_STOPPED if self.terminate else -signal.SIGKILL):
            self.bad.append(f"ended with {code} when it was hit in {phase!r}")
        return bool(self.bad)

    def until_the_moment(self, child: int) -> int | None:
        """Waits for a random moment; the exit code when the run was over before."""
        if sum(self.phases.values()) >= self.count:
            return wait(child, 60)
        if not self.terminate and self.chance.random() < 0.75:
            return wait(child, self.chance.uniform(0, 1.2 * self.starting))
        code = wait(child, 60, lambda: self.lives.phase not in BEFORE)
        more = self.chance.uniform(0, 0.07 * self.whole)
        return wait(child, more) if code is None else code


def main(folder: str, count: str, seed: str, workers: str, *more: str) -> dict[str, Any]:
    lives = Lives(Path(folder), int(workers))
    return Hunt(lives, int(count), int(seed), terminate="--terminate" in more).hunt()


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
