"""Ten scalars a step for TensorBoard against ten calls of ``SummaryWriter.add_scalar``.

Total cost, from the first step to the closed file; bar: at most 0.12 of torch's. Plain numbers
and tensors are timed; rounds of the three are interleaved and the best of each counts.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from hatbus import Bus, Context
from hatbus_tensorboard.tensorboard import TensorBoard

STEPS = 2000
ROUNDS = 5
BAR = 0.12
NAMES = [f"train/metric_{n}" for n in range(10)]


def torchs(folder: Path) -> float:
    """Seconds of ``add_scalar``, ten times a step."""
    began = time.perf_counter()
    writer = SummaryWriter(str(folder))
    for step in range(STEPS):
        for name in NAMES:
            writer.add_scalar(name, 0.5, step)
    writer.close()
    return time.perf_counter() - began


def hatbuses(value: float | torch.Tensor) -> Callable[[Path], float]:
    """Seconds of ``ctx.log`` with ten scalars a step."""

    def run(folder: Path) -> float:
        ctx = Context(Bus([TensorBoard(str(folder), describe=False)]))
        began = time.perf_counter()
        ctx.emit.on_loop_begin(ctx)
        for step in range(STEPS):
            ctx.global_step_id = step
            ctx.log(dict.fromkeys(NAMES, value))
        ctx.emit.on_loop_end(ctx)
        return time.perf_counter() - began

    return run


def main() -> None:
    """Prints the ratios and asserts the bar."""
    torch.set_num_threads(1)
    runs = {
        "torch": torchs,
        "hatbus, numbers": hatbuses(0.5),
        "hatbus, tensors": hatbuses(torch.tensor(0.5)),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            folder = Path(tempfile.mkdtemp())
            best[name] = min(best[name], run(folder))
            shutil.rmtree(folder)
    for name, seconds in best.items():
        ratio = seconds / best["torch"]
        print(f"{name}: {seconds / STEPS * 1e6:.1f} us a step, {ratio:.3f} of torch's")
        assert name == "torch" or ratio <= BAR


if __name__ == "__main__":
    main()
