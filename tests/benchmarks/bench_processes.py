"""Two processes: a step of the digits with hatbus and five metrics, against plain DDP by hand.

The digits' own net, batches, optimizer and plugins, with five metrics that are published in every
step, or in every tenth as the digits' job does. All take turns in one run, so that they see the
same machine; the median step counts.
"""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import distributed

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "docs/examples/digits"), str(Path(__file__).parent)]

from target import check_target  # noqa: E402 - the path is set above
from train import build, correct  # noqa: E402 - the same

from hatbus import Trainer, hookimpl  # noqa: E402 - the same
from hatbus.callbacks import CosLrUpdater, MetricUpdater, StatsMonitor  # noqa: E402 - the same
from hatbus_monitor.metrics import Accuracy, LossShow  # noqa: E402 - the same

BAR = 1.05
ROUNDS, STEPS, BATCH = 12, 60, 32
BY_HAND = "plain DDP by hand"


def main() -> int:
    """Starts both processes, or is one of them."""
    if "RANK" in os.environ:
        rank()
        sys.stdout.flush()
        os._exit(0)  # threads of gloo may be aborted by the interpreter's end
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], env=env, check=True)
    return 0


def rank() -> None:
    """Times all, turn by turn."""
    logging.getLogger("hatbus").setLevel(logging.ERROR)
    distributed.init_process_group("gloo")
    built = build(BATCH)
    batches = [batch for batch in built["data"] if len(batch[1]) == BATCH]
    data = [batches[step % len(batches)] for step in range(STEPS)]
    kinds: dict[str, Any] = {
        BY_HAND: by_hand,
        "hatbus, published in every step": lambda data: of_hatbus(data, 1),
        "hatbus, published in every tenth step": lambda data: of_hatbus(data, 10),
    }
    steps: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(ROUNDS + 1):
        for name, timed in kinds.items():
            distributed.barrier()
            found = timed(data)
            steps[name] += found if turn else []  # in the first all find their way
    distributed.barrier()
    if distributed.get_rank() == 0:
        medians = {name: statistics.median(found) for name, found in steps.items()}
        print(", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in medians.items()))
        for name, value in medians.items():
            if name != BY_HAND:
                what = f"two processes, digits, 5 metrics: {name}"
                check_target(what, value / medians[BY_HAND], BAR)


def by_hand(data: list[Any]) -> list[float]:
    """Seconds of the steps of plain DDP."""
    built = build(BATCH)
    model, optimizer = built["model"], built["optimizer"]
    shared = torch.nn.parallel.DistributedDataParallel(model)
    shared.train()
    ends = []
    for inputs, target in data:
        optimizer.zero_grad()
        built["loss"](shared(inputs), target).backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return between(ends)


class Clock:
    """When the steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    @hookimpl(trylast=True)
    def on_step_end(self) -> None:
        """After everybody else."""
        self.ends.append(time.perf_counter())


def of_hatbus(data: list[Any], every: int) -> list[float]:
    """Seconds of hatbus's steps, with the plugins of the digits' job."""
    built, clock = build(BATCH), Clock()

    def update(metrics: Any, batch: Any, model_outs: torch.Tensor, losses: Any) -> None:
        correct(metrics[:1], batch, model_outs)
        for metric in metrics[1:]:
            metric.update(losses["loss"])

    metrics = [Accuracy(), *(LossShow(f"m{number}") for number in range(4))]
    plugins = [
        CosLrUpdater(warmup_len=30),
        MetricUpdater(metrics=metrics, metric_update_func=update, step_log_freq=every),
        StatsMonitor(log_freq=100),
        clock,
    ]
    Trainer(built["model"], built["optimizer"], data, built["loss"], plugins=plugins).fit(
        num_steps=STEPS
    )
    return between(clock.ends)


def between(ends: list[float]) -> list[float]:
    """The steps but the first ten, in which DDP orders its buckets."""
    return [after - before for before, after in pairwise(ends[10:])]


if __name__ == "__main__":
    sys.exit(main())
