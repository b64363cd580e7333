"""What grows with the number of processes: counted in runs of 2, 3 and 4 on this machine.

``python tests/benchmarks/bench_growth.py`` prints a table; docs/many-processes.md has it, with what
follows for more. Everything is of one process unless the row says "in all".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

WORLDS = (2, 3, 4)
STEPS, FIRST, LAST = 30, 17, 27
SENDS = ("all_reduce", "broadcast", "all_gather_into_tensor", "all_gather", "gather", "scatter")
OF_DDP = ("riding.py", "buffers.py")
"""Files that exchange gradients and buffers in DDP's place."""


def main() -> None:
    """Starts the processes of every world, or is one of them."""
    if "RANK" in os.environ:
        rank(Path(sys.argv[1]))
        return
    found = {world: counted(world) for world in WORLDS}
    print("| what | " + " | ".join(f"{world} processes" for world in WORLDS) + " |")
    print("|---|" + "---|" * len(WORLDS))
    for name in found[WORLDS[0]]:
        print(f"| {name} | " + " | ".join(f"{found[world][name]:g}" for world in WORLDS) + " |")


def counted(world: int) -> dict[str, float]:
    """What the processes of one world have counted."""
    root = Path(__file__).resolve().parents[2]
    settings = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        for _ in range(2):  # the second goes on from what the first has saved
            subprocess.run(
                [sys.executable, *words, __file__, name], env={**os.environ, **settings}, check=True
            )
        ranks = [json.loads((folder / f"{one}.json").read_text()) for one in range(world)]
        found = {key: max(rank[key] for rank in ranks) for key in ranks[0]}
        files = [one for one in (folder / "runs").rglob("*") if one.is_file()]
        kept = [one for one in files if "checkpoint-step" in one.as_posix()]
        saves = sum(one.name == "MANIFEST.json" for one in kept)
        found["files of a checkpoint, in all"] = len(kept) / saves
        found["files of the run beside checkpoints, in all"] = len(files) - len(kept)
    return found


class Counts:
    """Counts between two steps what this process gives to its groups and to the store."""

    def __init__(self) -> None:
        self.messages: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        self.requests = self.began = 0.0
        self.found: dict[str, float] = {}

    def follow(self) -> None:
        """Wraps what sends; gradients and buffers, as DDP sends them, are not ours to count."""
        import torch
        from torch import distributed

        from hatbus.parallel.board import Board

        for name in SENDS:
            setattr(distributed, name, self._counting(name, getattr(distributed, name), torch))
            inner = distributed.distributed_c10d
            setattr(inner, name, getattr(distributed, name))
        for name in ("put", "look", "count"):
            setattr(Board, name, self._asking(getattr(Board, name)))

    def _counting(self, name, send, torch):
        def counted(*given, **options):
            values = [*given, *options.values()]
            lists = (one for one in values if isinstance(one, list))  # what comes from all
            tensors = next(lists, values[:1])
            if Path(sys._getframe(1).f_code.co_filename).name in OF_DDP:
                return send(*given, **options)
            self.messages[name] += 1
            self.sizes[name] += sum(one.nbytes for one in tensors if isinstance(one, torch.Tensor))
            return send(*given, **options)

        return counted

    def _asking(self, ask):
        def asked(*given, **options):
            self.requests += threading.current_thread().name == "hatbus watch"
            return ask(*given, **options)

        return asked

    def begin(self) -> None:
        """From here on."""
        self.messages.clear()
        self.sizes.clear()
        self.requests, self.began = 0, time.monotonic()

    def per_step(self) -> None:
        """Till here."""
        steps = LAST - FIRST
        self.found["messages of a step beside the gradients"] = sum(self.messages.values()) / steps
        self.found["bytes of them"] = sum(self.sizes.values()) / steps
        seconds = time.monotonic() - self.began
        self.found["requests of the watch to the store, a second"] = round(
            self.requests / seconds, 1
        )
        self.found["sockets"] = len(sockets())


def sockets() -> list[str]:
    """The sockets of this process."""
    found = []
    for one in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the folder itself has gone
            found.append(str(one.readlink()))
    return [one for one in found if one.startswith("socket:")]


def rank(folder: Path) -> None:
    """One process: trains, validates, saves; the second time it goes on."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    from hatbus import Trainer, hookimpl
    from hatbus.callbacks import Checkpoint, MetricUpdater, Validation
    from hatbus.data import loader

    torch.set_num_threads(1)
    torch.manual_seed(0)
    counts = Counts()
    counts.follow()
    is_second = (folder / "0.json").exists()

    class Clock:
        """Slow steps, so that the watch has something to do; what was counted, and where."""

        @hookimpl(tryfirst=True)
        def on_step_begin(self, global_step_id):
            time.sleep(0.2)
            if global_step_id % STEPS == FIRST:
                counts.begin()
            if global_step_id % STEPS == LAST:
                counts.per_step()

        @hookimpl
        def on_validation_begin(self):
            counts.messages.clear()

        @hookimpl
        def on_validation_end(self):
            counts.found["messages of a validation"] = sum(counts.messages.values())

        @hookimpl(wrapper=True, tryfirst=True)
        def save_checkpoint(self):
            counts.begin()
            saved = yield
            if counts.messages:  # at the end there is nothing left to save
                counts.found["messages of a save"] = sum(counts.messages.values())
                counts.found["bytes of them, received"] = sum(counts.sizes.values())
            return saved

        @hookimpl(wrapper=True, tryfirst=True)
        def load_checkpoint(self):
            before = read_so_far()
            loaded = yield
            counts.found["bytes read by a resume"] = read_so_far() - before
            return loaded

    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 1))
    data = loader(TensorDataset(torch.randn(960, 32), torch.randn(960, 1)), 4)
    named = {
        "clock": Clock(),
        "first": MetricUpdater(metrics=["loss"], step_log_freq=1),
        "second": MetricUpdater(metrics=["loss"], step_log_freq=1, log_prefix="again/"),
        "validation": Validation(data, val_interval=STEPS // 2, interval_by="step"),
        "checkpoint": Checkpoint(
            str(folder / "runs" / "saved"), save_interval=STEPS, interval_by="step"
        ),
    }
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), 0.01),
        data,
        nn.functional.mse_loss,
        named,
        device="cpu",
        run_dir=folder / "runs",
        resume="auto",
    )
    trainer.fit(num_steps=STEPS * (1 + is_second))
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(counts.found))


def read_so_far() -> int:
    """Bytes that this process has read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


if __name__ == "__main__":
    main()
