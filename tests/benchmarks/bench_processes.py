"""Two processes: a step of hatbus with five metrics, against plain DDP by hand, in one run.

Prints the ratio of the medians. The two take turns, so that both see the same machine.
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
    plain: list[float] = []
    ours: list[float] = []
    for _ in range(ROUNDS):
        plain.append(seconds_by_hand(data))
        ours.append(seconds_of_hatbus(data))
    if distributed.get_rank() == 0:
        by_hand, here = statistics.median(plain), statistics.median(ours)
        print(
            f"DDP by hand {by_hand / STEPS * 1e3:.2f} ms a step, hatbus with 5 metrics "
            f"{here / STEPS * 1e3:.2f} ms: {here / by_hand:.2f} times (bar: {BAR})"
        )
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)


def model_of():
    """A model of the digits."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def seconds_by_hand(data) -> float:
    """Plain DDP."""
    import torch

    model = torch.nn.parallel.DistributedDataParallel(model_of())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    began = 0.0
    for step, (inputs, target) in enumerate(data):
        if step == 1:
            began = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return time.perf_counter() - began


def seconds_of_hatbus(data) -> float:
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
                self.began = time.perf_counter()

        @hookimpl(trylast=True)
        def on_step_end(self):
            self.ended = time.perf_counter()

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
    return clock.ended - clock.began


if __name__ == "__main__":
    main()
