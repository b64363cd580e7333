"""The 720 configurations of exact resume, samples of them that hold every pair, and one trial.

A trial: a run without a break; the same run that crashes two steps after its only save, and is
resumed. The last checkpoints must be equal in every byte, run ids and clocks apart.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

from runs import last, trainer_of

from hatbus import hookimpl, plugin

AXES: dict[str, tuple[Any, ...]] = {
    "loader": (("own", 0), ("own", 2), ("foreign", 0), ("foreign", 2), ("stateful", 0)),
    "precision": ("fp32", "bf16", "fp16"),
    "average": (True, False),
    "accumulate": (1, 3),
    "tasks": ("", "all", "one", "weighted"),
    "point": ("inside an epoch", "last step of an epoch", "after an epoch"),
}
ALL: list[tuple[Any, ...]] = list(itertools.product(*AXES.values()))


def pairwise(count: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """At least ``count`` configurations, chosen greedily so that every pair of values occurs."""
    chance = random.Random(seed)
    missing = {pair for one in ALL for pair in pairs(one)}
    chosen: list[tuple[Any, ...]] = []
    while missing:
        some = chance.sample(ALL, 60)
        best = max(some, key=lambda one: (len(missing & pairs(one)), -one[0][1]))
        chosen.append(best)
        missing -= pairs(best)
    others = [one for one in ALL if one not in chosen and not one[0][1]]  # workers are slow
    return chosen + chance.sample(others, max(0, count - len(chosen)))


def pairs(one: tuple[Any, ...]) -> set[Any]:
    """The pairs of values in a configuration."""
    return set(itertools.combinations(enumerate(one), 2))


def name_of(one: tuple[Any, ...]) -> str:
    (kind, workers), *rest = one
    return "-".join(map(str, (f"{kind}{workers}", *rest))).replace(" ", "_")


class Crashed(Exception):  # noqa: N818 - it is no error, it is the plan
    """The run was killed here."""


@plugin(stage="report")
class Crash:
    """Ends the run in the middle of the end of a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        if ctx.position.global_step == self.after:
            raise Crashed


def choice_of(one: tuple[Any, ...]) -> dict[str, Any]:
    (kind, workers), precision, average, accumulate, tasks, _ = one
    return {
        "kind": kind,
        "workers": workers,
        "precision": precision,
        "average": average,
        "accumulate": accumulate,
        "tasks": tasks,
    }


def interval_of(point: str, epoch: int) -> tuple[dict[str, Any], int]:
    """Options that save once, and the step at which that is."""
    if point == "after an epoch":
        return {"interval_by": "epoch", "save_interval": 2}, 2 * epoch
    step = 2 * epoch if point == "last step of an epoch" else epoch + max(1, epoch // 2)
    return {"save_interval": step}, step


def trial(path: Path, one: tuple[Any, ...]) -> None:
    """Runs one configuration.

    Raises:
        AssertionError: naming the files that differ.
    """
    choice = choice_of(one)
    epoch = trainer_of(path / "unused", **choice).ctx.steps_per_epoch
    options, saved = interval_of(one[-1], epoch)
    whole = trainer_of(path / "whole", {"crash": Crash(-1)}, **choice, save_interval=None)
    whole.fit(num_steps=2 * epoch + 3)
    try:
        crash = {"crash": Crash(saved + 2)}
        trainer_of(path / "broken", crash, **choice, **options).fit(num_steps=2 * epoch + 3)
    except Crashed:
        pass
    resumed = trainer_of(path / "broken", {"crash": Crash(-1)}, **choice, save_interval=None)
    resumed.fit(num_steps=2 * epoch + 3)
    expected, found = last(path / "whole"), last(path / "broken")
    assert sorted(expected) == sorted(found)
    assert [name for name in expected if expected[name] != found[name]] == []
