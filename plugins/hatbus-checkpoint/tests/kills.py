"""Kills a real run again and again at random times, until it gets through; or signals it.

As a program: ``kills.py FOLDER KILLS SEED WORKERS [WORDS]`` prints one line of JSON: how many
kills there were, in which phase, how many starts failed, and whether the end is the right one. The
run is forked from a process that has imported everything, so that a start costs milliseconds.
``--terminate`` sends SIGTERM to the whole process group instead, and wants exit code 75 every time.
``--incremental`` lets saves share files, with half of the weights frozen.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from runs import last, state_in, trainer_of

from hatbus import hookimpl, plugin
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.unchanged import unchanged

STEPS = 24
SAVED_AND_STOPPED = 75
MORE: dict[str, Any] = {}
"""Options of the runs."""
OUTSIDE = ("start", "end")
"""Phases in which the loop does not serve signals yet, or not any more."""


@plugin(stage="validate")
class Slow:
    """Makes steps long enough to be hit, and says in which phase the run is."""

    def __init__(self, note: Any) -> None:
        self.note = note

    @hookimpl
    def on_loop_begin(self) -> None:
        self.say("resume")

    @hookimpl
    def on_step_begin(self) -> None:
        self.say("step")
        time.sleep(0.002)

    @hookimpl
    def on_step_end(self) -> None:
        self.say("save")

    @hookimpl
    def on_loop_end(self) -> None:
        self.say("end")

    def say(self, phase: str) -> None:
        if self.note is not None:
            os.pwrite(self.note, phase.ljust(8).encode(), 0)


def train(path: Path, workers: int, note: Any = None) -> None:
    options = {"save_interval": 1, "keep_last": 2, "workers": workers, "tasks": "weighted", **MORE}
    trainer_of(path, {"slow": Slow(note)}, **options).fit(num_steps=STEPS)


def fork(path: Path, workers: int, note: int) -> int:
    """Starts the run in a process group of its own."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        train(path, workers, note)
        code = 0
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """The exit code of a child (negative: its signal); None when it runs for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def digest(path: Path) -> str:
    if MORE:  # the files hang on when it was killed
        found = CheckpointFolder(path).latest()
        assert found is not None
        return hashlib.sha256(state_in(found.path).encode()).hexdigest()
    files = last(path)
    text = "".join(f"{n} {hashlib.sha256(b).hexdigest()}\n" for n, b in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def main(folder: str, kills: str, seed: str, workers: str, *more: str) -> dict[str, Any]:
    place, chance, terminate = Path(folder), random.Random(int(seed)), "--terminate" in more
    if "--incremental" in more:
        unchanged.LEAST = 1  # type: ignore[misc]
        MORE.update(incremental=True, frozen=True, copies=chance.choice([1, 2]))
    train(place / "whole", int(workers))
    expected = digest(place / "whole")
    result: dict[str, Any] = {"kills": 0, "bad": [], "runs": 0, "right": 0, "phases": {}}
    result |= {"shared": 0, "copies": MORE.get("copies")}
    phases: collections.Counter[str] = collections.Counter()
    note = os.open(place / "phase", os.O_RDWR | os.O_CREAT)
    while result["kills"] < int(kills):
        path = place / f"run-{result['runs']}"
        code: int | None = None
        while code != 0:
            os.pwrite(note, b"start   ", 0)
            child = fork(path, int(workers), note)
            limit = chance.uniform(0.02, 0.5 + 0.15 * int(workers))
            code = wait(child, limit if result["kills"] < int(kills) else 60)
            if code is None:
                phase = os.pread(note, 8, 0).decode().strip()
                phases[phase] += 1
                number = signal.SIGTERM if terminate else signal.SIGKILL
                try:
                    os.killpg(child, number)
                except ProcessLookupError:
                    os.kill(child, number)
                code = wait(child, 60)
                result["kills"] += 1
                outside = code == -signal.SIGTERM and phase in OUTSIDE
                wanted = SAVED_AND_STOPPED if terminate else -signal.SIGKILL
                if code not in {wanted, 0} and not (terminate and outside):
                    result["bad"].append(f"{code} in {phase!r}")
            elif code != 0:
                result["bad"].append(f"{code} by itself")
                break
        result["runs"] += 1
        result["right"] += digest(path) == expected
        result["shared"] += any(f.stat().st_nlink > 1 for f in path.rglob("model-*.safetensors"))
    result["phases"] = dict(phases)
    return result


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
