"""Two processes: a step of hatbus with five metrics, against plain DDP by hand, in one run.

Prints the ratios of the medians, of the minima, and of the processor's time, which a loaded machine
disturbs least. The two take turns, so that both see the same machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BAR = 1.05
ROUNDS, STEPS = 8, 40


def main() -> None:
    """Starts both processes, or is one of them."""
    if "RANK" in os.environ:
        rank()
        return
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], env=env, check=True)


def rank() -> None:
    """Times both, turn by turn."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    data = [(torch.randn(64, 64), torch.randint(0, 10, (64,))) for _ in range(STEPS)]
    seconds_by_hand(data)  # the first finds its way
    kinds = {"DDP by hand": seconds_by_hand, "hatbus with 5 metrics": seconds_of_hatbus}
    wall: dict[str, list[float]] = {name: [] for name in kinds}
    busy: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, timed in kinds.items():
            seconds, processor = timed(data)
            wall[name].append(seconds / (STEPS - 1) * 1e3)
            busy[name].append(processor / (STEPS - 1) * 1e3)
    if distributed.get_rank() == 0:
        for name in kinds:
            median, least = statistics.median(wall[name]), min(wall[name])
            work = statistics.median(busy[name])
            print(f"{name}: median {median:.2f} ms a step, least {least:.2f}, busy {work:.2f}")
        by_hand, ours = kinds
        median, least, work = (
            of(found[ours]) / of(found[by_hand])
            for found, of in ((wall, statistics.median), (wall, min), (busy, statistics.median))
        )
        print(f"{median:.2f} times (least {least:.2f}, busy {work:.2f}; bar: {BAR})")
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)


def model_of():
    """A model of the digits."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def seconds_by_hand(data) -> tuple[float, float]:
    """Plain DDP: seconds, and those of the processor."""
    import torch

    model = torch.nn.parallel.DistributedDataParallel(model_of())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    began = busy = 0.0
    for step, (inputs, target) in enumerate(data):
        if step == 1:
            began, busy = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return time.perf_counter() - began, time.process_time() - busy


def seconds_of_hatbus(data) -> tuple[float, float]:
    """The same with hatbus, its loss and four metrics more, published in every step."""
    import torch

    from hatbus import Trainer, hookimpl
    from hatbus.callbacks import MetricUpdater
    from hatbus_monitor.metrics import LossShow

    class Clock:
        """From the second step to the end of the last."""

        @hookimpl(tryfirst=True)
        def on_step_begin(self, global_step_id):
            if global_step_id == 1:
                self.began, self.busy = time.perf_counter(), time.process_time()

        @hookimpl(trylast=True)
        def on_step_end(self):
            self.ended, self.busy_till = time.perf_counter(), time.process_time()

    def update(metrics, batch, outs, losses):
        for metric in metrics:
            metric.update(losses["loss"])

    model, clock = model_of(), Clock()
    metrics = [LossShow(f"m{number}") for number in range(5)]
    updater = MetricUpdater(metrics=metrics, metric_update_func=update, step_log_freq=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(
        model, optimizer, data, torch.nn.functional.cross_entropy, plugins=[updater, clock]
    )
    trainer.fit(num_steps=STEPS)
    return clock.ended - clock.began, clock.busy_till - clock.busy


if __name__ == "__main__":
    main()
