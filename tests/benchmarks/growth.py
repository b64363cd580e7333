"""How hatbus's costs grow: with plugins, tasks, parameters, groups, names, checkpoints and runs.

``python tests/benchmarks/growth.py [--record] [--quick] [--only TEXT]``. A cost is measured at
several sizes, as the median of a few runs in turn, and a line is fitted through the logarithms of
the larger sizes: its slope is the exponent, 0 for a cost that stays the same, 1 for one that
doubles with the size. ``--record`` writes ``docs/growth.json``, and from it ``docs/growth.md``.

Targets: no exponent above what it must be, by more than 0.15.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[2] / "docs")]

from growth_page import RECORD, recorded, write_page  # noqa: E402 - the path is set above
from target import check_target  # noqa: E402 - the same

from hatbus import Trainer, hookimpl  # noqa: E402 - the same
from hatbus.data import OneTask  # noqa: E402 - the same
from hatbus.runs.folders import Wanted, newest_own  # noqa: E402 - the same
from hatbus.runs.listing import runs_below  # noqa: E402 - the same
from hatbus.runs.summary import Summary  # noqa: E402 - the same
from hatbus_checkpoint import manifest  # noqa: E402 - the same
from hatbus_checkpoint.checkpoint import Checkpoint  # noqa: E402 - the same
from hatbus_checkpoint.folder import CheckpointFolder  # noqa: E402 - the same
from hatbus_checkpoint.locate import locate  # noqa: E402 - the same
from hatbus_grad.grad_clip import GradClip  # noqa: E402 - the same
from hatbus_lr.cos_lr import CosLrUpdater  # noqa: E402 - the same
from hatbus_model.ema import ExponentialMovingAverage  # noqa: E402 - the same
from hatbus_tensorboard.tensorboard import TensorBoard  # noqa: E402 - the same

Cost = Callable[[], float]
SLACK = 0.15
mse = torch.nn.functional.mse_loss


@dataclass(frozen=True)
class Growth:
    """A cost that is measured at several sizes.

    Attributes:
        what: costs.
        per: what the sizes count.
        sizes: rising.
        must: the exponent that it cannot be below.
        costs: gives, for a size, what measures seconds.
    """

    what: str
    per: str
    sizes: tuple[int, ...]
    must: float
    costs: Callable[[int], contextlib.AbstractContextManager[Cost]]


class Listens:
    """A plugin that hears a step's end."""

    @hookimpl
    def on_step_end(self) -> None: ...


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(4, 8), torch.ones(4, 8))] * steps


def tiny(groups: int = 1) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A linear layer; of several groups each further one has a parameter of one number."""
    model = torch.nn.Linear(8, 8)
    more = [torch.nn.Parameter(torch.zeros(1)) for _ in range(groups - 1)]
    for number, parameter in enumerate(more):
        model.register_parameter(f"more{number}", parameter)
    own = [p for name, p in model.named_parameters() if not name.startswith("more")]
    each = [{"params": own}, *({"params": [p]} for p in more)]
    return model, torch.optim.SGD(each, lr=0.01)


def seconds_of(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def step_of(trainer: Trainer, steps: int) -> Cost:
    """Seconds of a step, in a fit that goes on where the last one ended."""

    def cost() -> float:
        times: list[float] = []
        trainer.bus.members["stamps"].plugin.times = times
        trainer.fit(num_steps=trainer.ctx.position.global_step + steps)
        return median(after - before for before, after in pairwise(times))

    return cost


class Stamps:
    """Notes when a step begins."""

    times: list[float]

    @hookimpl
    def on_step_begin(self) -> None:
        self.times.append(time.perf_counter())


@contextlib.contextmanager
def plugins_step(count: int) -> Iterator[Cost]:
    plugins = {f"p{n}": Listens() for n in range(count)} | {"stamps": Stamps()}
    yield step_of(Trainer(*tiny(), batches(400), mse, plugins), 100)


@contextlib.contextmanager
def plugins_start(count: int) -> Iterator[Cost]:
    def start() -> None:
        plugins = {f"p{n}": Listens() for n in range(count)}
        Trainer(*tiny(), batches(400), mse, plugins).fit(num_steps=1)

    yield lambda: seconds_of(start)


@contextlib.contextmanager
def tasks_step(count: int) -> Iterator[Cost]:
    yield step_of(tasks_trainer(count, {"stamps": Stamps(), "p": Listens()}), 100)


@contextlib.contextmanager
def tasks_start(count: int) -> Iterator[Cost]:
    yield lambda: seconds_of(lambda: tasks_trainer(count, {"p": Listens()}).fit(num_steps=1))


def tasks_trainer(count: int, plugins: dict[str, object]) -> Trainer:
    names = [f"t{n}" for n in range(count)]
    data = {name: batches(400) for name in names}
    return Trainer(
        *tiny(), data, dict.fromkeys(names, mse), plugins, task_sampler=OneTask(steps=400)
    )


@contextlib.contextmanager
def parameters_step(count: int) -> Iterator[Cost]:
    """With an average and clipping; the loss touches every parameter."""
    model = Sums(count)
    plugins = {
        "ema": ExponentialMovingAverage(0.99, decay_base=0),
        "clip": GradClip(1e9),
        "stamps": Stamps(),
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    data = [(torch.ones(1), torch.ones(1))] * 400
    yield step_of(Trainer(model, optimizer, data, mse, plugins), 4 if count > 10**7 else 20)


@contextlib.contextmanager
def groups_step(count: int) -> Iterator[Cost]:
    plugins = {"lr": CosLrUpdater(max_steps=10**6), "stamps": Stamps()}
    yield step_of(Trainer(*tiny(count), batches(400), mse, plugins), 20)


@contextlib.contextmanager
def groups_start(count: int) -> Iterator[Cost]:
    def start() -> None:
        Trainer(*tiny(count), batches(400), mse, [CosLrUpdater(max_steps=10**6)]).fit(num_steps=1)

    yield lambda: seconds_of(start)


class Sums(torch.nn.Module):
    """Sixteen tensors, of which it returns the sum."""

    def __init__(self, count: int) -> None:
        super().__init__()
        each = [torch.nn.Parameter(torch.randn(count // 16)) for _ in range(16)]
        self.all = torch.nn.ParameterList(each)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return torch.stack([p.sum() for p in self.all]).sum().reshape(1)


class Logs:
    """Publishes many values at every step."""

    def __init__(self, count: int) -> None:
        self.values = {f"group/name_{n}": 0.5 for n in range(count)}

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        ctx.log(self.values)


@contextlib.contextmanager
def names_step(count: int) -> Iterator[Cost]:
    """Written to TensorBoard."""
    with tempfile.TemporaryDirectory() as folder:
        board = TensorBoard(folder, describe=False, update_freq=10**6)
        plugins = {"logs": Logs(count), "board": board, "stamps": Stamps()}
        yield step_of(Trainer(*tiny(), batches(400), mse, plugins), 20)


# ---- folders -------------------------------------------------------------------------------------


@contextlib.contextmanager
def many_checkpoints(count: int) -> Iterator[tuple[Path, Trainer]]:
    """A run that saves at every step, and so many whole checkpoints of an earlier one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "checkpoints")
        options: dict[str, Any] = {"save_interval": 1, "interval_by": "step", "keep_last": 10**6}
        plugin = Checkpoint(str(folder), save_hash=False, save_on_train_end=False, **options)
        plugins = {"checkpoint": plugin, "stamps": Stamps()}
        trainer = Trainer(*tiny(), batches(400), mse, plugins)
        trainer.bus.members["stamps"].plugin.times = []
        trainer.fit(num_steps=1)
        first = folder / "checkpoint-step-1"
        written = json.loads((first / manifest.NAME).read_bytes())
        for number in range(1, count):
            copy = folder / f"checkpoint-epoch-{number}"
            copy.mkdir()
            for file in sorted(first.rglob("*")):
                beside = copy / file.relative_to(first)
                if file.is_dir():
                    beside.mkdir()
                elif file.name != manifest.NAME:
                    beside.hardlink_to(file)
            body = {key: value for key, value in written.items() if key != "sha256"}
            body |= {"run": "an earlier one", "lineage": 0}
            body["progress"] = written["progress"] | {"global_step": number}
            (copy / manifest.NAME).write_bytes(manifest.write(body))
        yield folder, trainer


@contextlib.contextmanager
def checkpoints_save(count: int) -> Iterator[Cost]:
    """A step that saves into the folder, with retention that keeps all."""
    with many_checkpoints(count) as (_, trainer):
        yield step_of(trainer, 5)


@contextlib.contextmanager
def checkpoints_resume(count: int) -> Iterator[Cost]:
    """Finding the newest good one."""
    with many_checkpoints(count) as (folder, _):
        found = locate("auto", CheckpointFolder(folder))
        assert found is not None
        assert found.path.name == "checkpoint-step-1"
        yield lambda: seconds_of(lambda: locate("auto", CheckpointFolder(folder)))


@contextlib.contextmanager
def many_runs(count: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            folder = Path(name, f"2026-11-30_{number:05}")
            folder.mkdir()
            metrics = {"val/accuracy": {"last": 0.5, "min": 0.1, "max": 0.9}}
            Summary(f"/job{number % 7}.toml", started=float(number), metrics=metrics).write(folder)
        yield Path(name)


@contextlib.contextmanager
def runs_list(count: int) -> Iterator[Cost]:
    with many_runs(count) as place:
        yield lambda: seconds_of(lambda: runs_below(place))


@contextlib.contextmanager
def runs_find(count: int) -> Iterator[Cost]:
    """The newest run of a job, with which it goes on."""
    with many_runs(count) as place:
        wanted = Wanted(place=place, job="/job3.toml", resume="auto")
        yield lambda: seconds_of(lambda: newest_own(wanted))


FEW, TASKS = (1, 3, 10, 30, 100, 200), (1, 4, 16, 64)
CHECKPOINTS, RUNS = (1, 100, 1_000, 10_000), (1, 50, 500, 5_000)
GROWTHS = (
    Growth("a step", "plugins", FEW, 1, plugins_step),
    Growth("a start", "plugins", FEW, 1, plugins_start),
    Growth("a step of one task in turn", "tasks", TASKS, 0, tasks_step),
    Growth("a start", "tasks", TASKS, 1, tasks_start),
    Growth(
        "a step with EMA and clipping",
        "parameters",
        tuple(10**n for n in range(4, 9)),
        1,
        parameters_step,
    ),
    Growth("a step with a schedule", "param groups", (1, 10, 100, 1_000), 1, groups_step),
    Growth("a start with a schedule", "param groups", (1, 10, 100, 1_000), 1, groups_start),
    Growth(
        "a step that logs to TensorBoard", "log names", (1, 10, 100, 1_000, 10_000), 1, names_step
    ),
    Growth("a save", "checkpoints in the folder", CHECKPOINTS, 1, checkpoints_save),
    Growth("finding the newest", "checkpoints in the folder", CHECKPOINTS, 1, checkpoints_resume),
    Growth("listing runs", "run folders", RUNS, 1, runs_list),
    Growth("finding a job's newest run", "run folders", RUNS, 1, runs_find),
)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of the logarithms over the upper half of the sizes, three of them at least."""
    last = max(3, (len(sizes) + 1) // 2)
    x, y = ([math.log(v) for v in values[-last:]] for values in (sizes, seconds))
    mean_x, mean_y = sum(x) / last, sum(y) / last
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def measured(growth: Growth, sizes: Sequence[int], rounds: int) -> list[float]:
    """Median seconds at every size, all sizes in turn."""
    with contextlib.ExitStack() as stack:
        costs = [stack.enter_context(growth.costs(size)) for size in sizes]
        for cost in costs:
            cost()
        found = [[cost() for cost in costs] for _ in range(rounds)]
    return [median(row) for row in zip(*found, strict=True)]


def beside(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with those that were there of what has not been measured again, in order."""
    found = {(row["what"], row["per"]): row for row in [*before, *rows]}
    return [
        found[growth.what, growth.per] for growth in GROWTHS if (growth.what, growth.per) in found
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for growth in GROWTHS:
        name = f"{growth.what}, by {growth.per}"
        if given.only not in name:
            continue
        sizes = growth.sizes[: 3 if given.quick else None]
        seconds = measured(growth, sizes, 1 if given.quick else 5)
        slope = exponent(sizes, seconds)
        check_target(f"exponent of {name}", slope, growth.must + SLACK)
        rows.append(
            {
                "what": growth.what,
                "per": growth.per,
                "sizes": sizes,
                "seconds": [float(f"{s:.3g}") for s in seconds],
                "exponent": round(slope, 2),
                "must": growth.must,
            }
        )
        costs = zip(sizes, seconds, strict=True)
        print("   ", ", ".join(f"{size:,}: {took * 1e6:,.0f} us" for size, took in costs))
    if given.record:
        rows = beside(recorded()["rows"], rows) if given.only else rows
        record = {"date": str(date.today()), "torch": torch.__version__.split("+")[0], "rows": rows}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        write_page(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
