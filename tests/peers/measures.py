"""What is measured, of every peer in turn: names, jobs, and what one run gives.

A figure is made of runs of all peers, one after the other, round after round, or in turns of a
tenth of a second: a machine that is slower for a while is slower for all of them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from peers.work import Job, Work

Train = Callable[[Work], None]
HAND = "hand"
CALLBACKS, SOME_TASKS = (0, 5, 20), (1, 4)
IN_BACKGROUND = ("hatbus", "lightning")
"""Peers that can save while the training goes on."""


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        what: it says, with its unit.
        job: that is run.
        read: gives the figure of a run.
        beside: the job whose figure is taken off, if any.
        only: the peers that can do it; empty: all.
        over: how many things the difference is divided by.
        rounds: in which all take turns.
    """

    what: str
    job: Job
    read: str = "step"
    beside: Job | None = None
    only: tuple[str, ...] = ()
    over: int = 1
    rounds: int = 3

    @property
    def in_turns(self) -> bool:
        """Whether all run side by side: where a figure is of one run, and of many steps of it."""
        return self.beside is None and self.read in ("step", "period")


TINY, THIN, TOY = Job("tiny", 448), Job("thin", 60), Job("toy", 200)
ALL = Job("net", 410, ema=True, clip=True, scale=True, lr=True, metrics=True, scalars=5)
SAVES = Job("large", 22, save_every=7)
MEASURES = {
    **{
        f"loop, {tasks} task{'s' * (tasks > 1)}, {count} callbacks": Measure(
            "microseconds a step", replace(TINY, steps=1200, tasks=tasks, callbacks=count), rounds=2
        )
        for tasks in SOME_TASKS
        for count in CALLBACKS
    },
    "average of the weights (EMA)": Measure(
        "microseconds added to a step", replace(THIN, ema=True), beside=THIN
    ),
    "gradient clipping": Measure(
        "microseconds added to a step", replace(THIN, clip=True), beside=THIN
    ),
    "gradient scaling": Measure(
        "microseconds added to a step", replace(THIN, scale=True), beside=THIN
    ),
    "learning rate schedule": Measure(
        "microseconds added to a step", replace(TINY, lr=True), beside=TINY
    ),
    "mean loss and accuracy": Measure(
        "microseconds added to a step", replace(TOY, metrics=True), beside=TOY
    ),
    "TensorBoard, one scalar": Measure(
        "microseconds added to a step",
        replace(TINY, steps=250, scalars=10),
        beside=replace(TINY, steps=250),
        over=10,
    ),
    "validation": Measure(
        "microseconds a batch",
        Job("toy", 8, validate=100),
        "whole",
        beside=Job("toy", 40),
        over=100,
    ),
    "save, training blocked": Measure("milliseconds", SAVES, "blocked", rounds=2),
    "save in the background, training blocked": Measure(
        "milliseconds", replace(SAVES, in_background=True), "blocked", only=IN_BACKGROUND, rounds=2
    ),
    "save in the background, in all": Measure(
        "milliseconds",
        replace(SAVES, steps=5, save_every=1, in_background=True),
        "in_all",
        only=IN_BACKGROUND,
        rounds=2,
    ),
    "load": Measure(
        "milliseconds", Job("large", 3, length=3, save_every=2, resume=True), "load", rounds=2
    ),
    "everything on": Measure(
        "microseconds a step", replace(ALL, save_every=200), "period", rounds=1
    ),
    "nothing on, the same net": Measure("microseconds a step", Job("net", 410), rounds=1),
}


SHORT = {"steps": 12, "save_every": 3, "validate": 2}


def shortened(job: Job) -> Job:
    """The job with few steps and the small net: what it gives is a number, and no figure."""
    fewer = {key: min(getattr(job, key), most) for key, most in SHORT.items()}
    return replace(job, model="net" if job.model == "large" else job.model, **fewer)


def once(train: Train, job: Job, read: str) -> float:
    """Runs a job in a folder of its own, and reads its figure."""
    folder = tempfile.mkdtemp(prefix="peers-")
    try:
        return READERS[read](train, replace(job, folder=folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def trained(train: Train, job: Job) -> Work:
    work = Work(job)
    train(work)
    return work


def step(train: Train, job: Job, window: int = 20) -> float:
    """Microseconds of work: the median over windows of steps, the first windows apart."""
    times = trained(train, job).worked[: job.steps]
    begin = min(50, job.steps // 4)
    window = max(1, min(window, job.steps // 8))
    starts = range(begin, len(times) - window, window)
    return median((times[n + window] - times[n]) / window for n in starts) * 1e6


def period(train: Train, job: Job) -> float:
    """Microseconds of work a step over whole periods, each with one checkpoint."""
    times, every = trained(train, job).worked, job.save_every
    first = job.steps % every
    starts = range(first, job.steps - every + 1, every)
    return median((times[n + every - 1] - times[n - 1]) / every for n in starts) * 1e6


def whole(train: Train, job: Job) -> float:
    """Microseconds of work in a step with all that follows it, the first apart."""
    worked = trained(train, job).worked[: job.steps]
    return median(after - before for before, after in pairwise(worked[1:])) * 1e6


def lengths_of(train: Train, job: Job) -> list[float]:
    """Seconds from one batch to the next."""
    return [after - before for before, after in pairwise(trained(train, job).times[: job.steps])]


def blocked(train: Train, job: Job) -> float:
    """Milliseconds that a save keeps the training: its step and the next, beyond other steps."""
    lengths = lengths_of(train, job)
    saving = range(job.save_every - 1, len(lengths) - 1, job.save_every)
    near = {n for first in saving for n in (first, first + 1)}
    other = median(length for n, length in enumerate(lengths) if n not in near)
    return (median(lengths[n] + lengths[n + 1] for n in saving) - 2 * other) * 1e3


def in_all(train: Train, job: Job) -> float:
    """Milliseconds of one of several saves in a row, from the first to the end of the last."""
    own = median(lengths_of(train, replace(job, save_every=0, steps=20)))
    work = trained(train, job)
    saves = job.steps // job.save_every
    return (time.perf_counter() - work.times[0] - job.steps * own) / saves * 1e3


def load(train: Train, job: Job) -> float:
    """Milliseconds until the first batch that a resumed run takes more than a new one."""
    trained(train, replace(job, steps=job.save_every, resume=False))
    beside = replace(job, resume=False, folder=f"{job.folder}/new")
    return (first_batch(train, job) - first_batch(train, beside)) * 1e3


def first_batch(train: Train, job: Job) -> float:
    """Seconds from the call to the first batch."""
    work = Work(job)
    began = time.perf_counter()
    train(work)
    return work.times[0] - began


READERS: dict[str, Callable[[Train, Job], float]] = {
    "step": step,
    "period": period,
    "whole": whole,
    "blocked": blocked,
    "in_all": in_all,
    "load": load,
}


def differs(train: Train, other: Train, job: Job) -> float:
    """How far a peer's weights are from those by hand after the same steps, at most."""
    found = [trained(each, job).model for each in (train, other)]
    pairs = zip(*(model.parameters() for model in found), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def checked(train: Train, other: Train, name: str) -> dict[str, Any]:
    """What tells that a peer did the same work as the loop by hand."""
    folder = tempfile.mkdtemp(prefix="peers-")
    try:
        job = replace(ALL, steps=8, ema=False, save_every=0, folder=folder)
        return {"weights_differ_by": differs(train, other, job), "peer": name}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
