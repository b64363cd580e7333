"""What is promised of a run, tried with every peer's own checkpoints and callbacks.

Each trial gives ``{"verdict": "kept", "partly" or "broken", "told": what happened}``; the texts are
made of what was seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from peers.forked import Counter, Ended, forked, is_alive, listing
from peers.work import Job, Watcher, Work

Train = Callable[[Work], None]
STATE = Job("thin", 8, save_every=2)
EXACT = Job("dropout", 40, save_every=7, shuffled=True)
DIES_AFTER = 31
"""Eleven of the second epoch's twenty steps, and three after a checkpoint."""


class Tells(Watcher):
    """Says in shared memory how far the run is."""

    def __init__(self, reached: Counter) -> None:
        super().__init__("tells")
        self.reached = reached

    def step(self, number: int) -> None:
        super().step(number)
        self.reached.value = number


class Dies(Watcher):
    """Kills its process after a step."""

    def __init__(self, after: int) -> None:
        super().__init__("dies")
        self.last = after

    def step(self, number: int) -> None:
        if number == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class Fails(Watcher):
    """Raises in a step."""

    def step(self, number: int) -> None:
        if number == 3:
            raise ValueError("this metric is broken")


class FillsTheDisk(Watcher):
    """Limits the size of files after the first checkpoint, where no small disk can be had."""

    def step(self, number: int) -> None:
        if number == STATE.save_every + 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))


def run_of(train: Train, job: Job, place: Path, *watchers: Watcher) -> Callable[[], dict[str, Any]]:
    """A run that leaves its weights in a file, and tells where it began."""

    def run() -> dict[str, Any]:
        seen = Watcher("seen")
        work = Work(job, [seen, *watchers])
        train(work)
        torch.save(list(work.model.parameters()), place / "weights.pt")
        return {"began_at": (seen.first or 1) - 1}

    return run


def weights(place: Path) -> list[torch.Tensor]:
    return torch.load(place / "weights.pt", weights_only=False)


def same(one: Path, other: Path) -> bool:
    """Whether two runs left the same weights, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@contextlib.contextmanager
def places() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="peers-promise-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- killed while saving -------------------------------------------------------------------------


def killed(train: Train, _name: str, kills: int) -> dict[str, str]:
    """SIGKILL at moments spread over the second save; then a new process goes on."""
    with places() as place:
        whole = place / "whole"
        forked(run_of(train, replace(STATE, folder=str(whole)), whole), whole)
        outcomes: Tally[str] = Tally()
        lasts = 0.0
        for turn in range(kills + 1):  # the first tells how long a save lasts, and does not count
            mine = place / str(turn)
            reached = Counter()
            job = replace(STATE, folder=str(mine / "run"))
            aim = Aim(mine / "run", reached, lasts * (turn - 1) / kills if turn else None)
            forked(run_of(train, job, mine, Tells(reached)), mine, aim.kill)
            lasts = lasts or aim.lasted
            if turn:
                job = replace(STATE, resume=True, folder=str(mine / "run"))
                ended = forked(run_of(train, job, mine, Tells(reached)), mine)
                outcomes[went_on(ended, mine, whole)] += 1
            shutil.rmtree(mine)
    right = outcomes.pop(RIGHT, 0)
    told = [
        f"{right} of {kills} killed runs went on right",
        *(f"{n}: {w}" for w, n in outcomes.items()),
    ]
    return {"verdict": verdict(right, kills), "told": "; ".join(told)}


class Aim:
    """Kills a process some time after its second save has begun.

    Args:
        folder: where it saves.
        reached: its step.
        delay: seconds; None: only measures how long that save lasts.
    """

    def __init__(self, folder: Path, reached: Counter, delay: float | None) -> None:
        self.folder, self.reached, self.delay = folder, reached, delay
        self.lasted = 0.0

    def kill(self, child: int) -> None:
        while is_alive(child) and self.reached.value < STATE.save_every + 1:
            time.sleep(0.001)
        before = listing(self.folder)
        while is_alive(child) and (now := listing(self.folder)) == before:
            time.sleep(0.0005)
        began = time.monotonic()
        if self.delay is None:
            while is_alive(child) and time.monotonic() < began + 5:
                before, now = now, listing(self.folder)
                if now != before:
                    self.lasted = time.monotonic() - began
                if self.reached.value > 2 * STATE.save_every:
                    break
        else:
            time.sleep(self.delay)
        os.kill(child, signal.SIGKILL)


RIGHT = "right"


def went_on(ended: Ended, mine: Path, whole: Path) -> str:
    """What became of a resumed run, in words."""
    if ended.error:
        return f"could not go on ({short(ended.error)})"
    if not ended.found:
        return "its process ended"
    if ended.found["began_at"] == 0:
        return "began anew, with a warning at most"
    return RIGHT if same(mine, whole) else "went on with other weights, with a warning at most"


def short(error: str, most: int = 110) -> str:
    """One line of an error, without the paths of this machine."""
    error = re.sub(r"\x1b\[[0-9;]*m", "", error)  # colours
    words = [Path(w.strip("'\"(),")).name if w.count("/") > 1 else w for w in error.split()]
    line = " ".join(words).replace("|", "/").replace("`", "'")
    return line if len(line) <= most else line[: most - 3] + "..."


def verdict(good: int, count: int) -> str:
    return "kept" if good == count else "partly" if good else "broken"


# ---- the disk is full ----------------------------------------------------------------------------


def disk_full(train: Train, _name: str) -> dict[str, str]:
    """The second save finds no room; then there is room, and a new process goes on."""
    with places() as place, small_disk(place / "disk") as (disk, more_room):
        whole = place / "whole"
        forked(run_of(train, replace(STATE, folder=str(whole)), whole), whole)
        fills = [] if more_room else [FillsTheDisk("fills")]
        job = replace(STATE, folder=str(disk))
        ended = forked(run_of(train, job, place, *fills), place)
        if more_room:
            more_room()
        fills = [Watcher(watcher.name) for watcher in fills]
        again = forked(run_of(train, replace(job, resume=True), place, *fills), place)
        outcome = went_on(again, place, whole)
    says = any(word in ended.error for word in ("No space", "full", "too large", "free"))
    how = f"ended with {short(ended.error, 150)}" if ended.error else "noticed nothing"
    after = "then went on right" if outcome == RIGHT else f"then {outcome}"
    good = (bool(ended.error) and says) + (outcome == RIGHT)
    return {"verdict": verdict(good, 2), "told": f"{how}; {after}"}


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[tuple[Path, Callable[[], Any] | None]]:
    """A disk with room for one and a half states, and what gives it more; None if it cannot be."""
    place.mkdir(parents=True)
    state = 12 * sum(p.numel() for p in Work(STATE).model.parameters())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(state * 1.5)}", "none", str(place)]
    try:
        is_there = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        is_there = False
    grow = ["mount", "-o", f"remount,size={state * 6}", str(place)]
    try:
        yield place, (lambda: subprocess.run(grow, check=True)) if is_there else None
    finally:
        if is_there:
            subprocess.run(["umount", "-l", str(place)], check=False)


# ---- going on exactly ----------------------------------------------------------------------------


def exact(train: Train, _name: str) -> dict[str, str]:
    """Killed in the middle of the second epoch; with shuffled data and dropout."""
    with places() as place:
        whole, mine = place / "whole", place / "mine"
        forked(run_of(train, replace(EXACT, folder=str(whole / "run")), whole), whole)
        job = replace(EXACT, folder=str(mine / "run"))
        ended = forked(run_of(train, job, mine, Dies(DIES_AFTER)), mine)
        if ended.signal != signal.SIGKILL:
            return {"verdict": "broken", "told": f"did not get to the kill: {short(ended.error)}"}
        again = forked(run_of(train, replace(job, resume=True), mine, Watcher("dies")), mine)
        if again.error:
            return {"verdict": "broken", "told": f"could not go on ({short(again.error)})"}
        began = again.found["began_at"]
        is_same = same(mine, whole)
        far = max((a - b).abs().max() for a, b in zip(weights(mine), weights(whole), strict=True))
    saved = DIES_AFTER // EXACT.save_every * EXACT.save_every
    ends = "ends bit for bit as if nothing had been" if is_same else f"ends up to {far:.1g} away"
    told = f"goes on at step {began} (saved at {saved}), {ends}"
    return {"verdict": "kept" if is_same and began == saved else "broken", "told": told}


# ---- callbacks -----------------------------------------------------------------------------------


def error_in_callback(train: Train, name: str) -> dict[str, str]:
    """One callback of two raises: who is named, and is the other told of the end?"""
    with places() as place:

        def run() -> dict[str, Any]:
            calls: list[str] = []
            work = Work(
                Job(steps=6, folder=str(place)), [Fails("meter", calls), Watcher("other", calls)]
            )
            try:
                train(work)
            except Exception as error:
                notes = " ".join(getattr(error, "__notes__", []))
                return {"error": f"{type(error).__name__}: {error} {notes}", "calls": calls}
            return {"error": "", "calls": calls}

        found = forked(run, place).found
    if name == "accelerate":
        return {"verdict": "none", "told": "has no callbacks"}
    is_raised, is_named = bool(found["error"]), "meter" in found["error"]
    is_told = "other is told of the end" in found["calls"]
    told = [
        "the run ends with the callback's error" if is_raised else "the run goes on without a word",
        "which names the callback" if is_named else "which does not name the callback",
        "the other is told of the end" if is_told else "the other is not told of the end",
    ]
    return {"verdict": verdict(is_raised + is_named + is_told, 3), "told": "; ".join(told)}


def two_instances(train: Train, name: str) -> dict[str, str]:
    """Two of one class keep a count each; the resumed run makes them in the other order."""
    job = Job("toy", 6, save_every=4)
    with places() as place:
        job = replace(job, folder=str(place / "run"))

        def run(job: Job, counts: dict[str, int], dies: int) -> dict[str, Any]:
            watchers = [Watcher(which) for which in counts]
            for watcher in watchers:
                watcher.count = counts[watcher.name]
            train(Work(job, [*watchers, Dies(dies)]))
            return {watcher.name: watcher.count for watcher in watchers}

        forked(lambda: run(job, {"first": 0, "second": 100}, dies=5), place)
        job = replace(job, resume=True)
        ended = forked(lambda: run(job, {"second": 0, "first": 0}, dies=0), place)
    if ended.error:
        return {"verdict": "broken", "told": short(ended.error)}
    found = (ended.found["first"], ended.found["second"])
    says = {
        (6, 106): "each has its own state back",
        (106, 6): "the states are exchanged, no word of it",
    }
    lost = f"the counts are {found[0]} and {found[1]} in place of 6 and 106, no word of it"
    return {"verdict": "kept" if found == (6, 106) else "broken", "told": says.get(found, lost)}


def order(train: Train, name: str) -> dict[str, str]:
    """A callback that must come after another is listed before it."""
    if name == "accelerate":
        return {"verdict": "none", "told": "has no callbacks"}
    with places() as place:
        found = []
        for backwards in (False, True):

            def run(backwards: bool = backwards) -> dict[str, Any]:
                calls: list[str] = []
                watchers = [Watcher("meter", calls), Watcher("logger", calls, after="meter")]
                train(Work(Job(steps=2, folder=str(place)), watchers[:: -1 if backwards else 1]))
                return {"calls": calls[:2]}

            found.append(forked(run, place).found.get("calls"))
    if found == [["meter", "logger"]] * 2:
        return {
            "verdict": "kept",
            "told": "is declared, and holds in whatever order they are listed",
        }
    return {
        "verdict": "broken",
        "told": "is that of the list: listed the other way they run the other way",
    }


TRIALS: dict[str, Callable[..., dict[str, str]]] = {
    "killed while saving": killed,
    "disk full": disk_full,
    "exact in mid-epoch": exact,
    "error in a callback": error_in_callback,
    "two of one class": two_instances,
    "order": order,
}
