"""Saves that write only what changed, against saves that write all and torch's own; interleaved.

Run it as ``python tests/benchmarks/bench_incremental.py [MEBIBYTES] [FOLDER]``: a state of so many
(by default 1144, which is 1.2 GB), of which 95 % is frozen, and one that changes altogether. It
needs as much memory and eight times as much disk. With ``incremental`` every figure is of a save
that has earlier ones to share with: from the second of a run on, with ``copies = 2`` the third.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import torch
from bench_checkpoint import FIELDS, interleaved, torch_and_sync
from target import check_target

from hatbus_checkpoint.folder import CheckpointFolder, Entry
from hatbus_checkpoint.saving import Saves
from hatbus_checkpoint.sharded.peers import Peers
from hatbus_checkpoint.snapshot import Snapshot

LAYER: Final = 16
"""Mebibytes of a tensor."""
OPTIMIZER: Final = 2
"""Tensors of Adam's state to one that is trained."""
ROUNDS: Final = 5
ALONE: Final = Peers(cast("Any", SimpleNamespace(rank=0, world_size=1, control=None)))


class State:
    """Tensors of a model and of its optimizer; a step changes those that are trained.

    Args:
        mebibytes: of all.
        trained: share of it that changes.
    """

    def __init__(self, mebibytes: int, trained: float) -> None:
        torch.manual_seed(0)
        layer = max(4, LAYER * mebibytes // 1144)
        of_trained = max(1, round(mebibytes * trained / (1 + OPTIMIZER) / layer))
        frozen = round(mebibytes * (1 - trained) / layer) if trained < 1 else 0
        sides = {"frozen": frozen, "trained": of_trained}
        self.model = {f"{k}{i}": _layer(layer) for k, n in sides.items() for i in range(n)}
        count = OPTIMIZER * of_trained
        self.optim = {f"state/trained{i}": _layer(layer) for i in range(count)}
        self.frozen = {("model", name) for name in self.model if name.startswith("frozen")}

    def step(self) -> None:
        for name, tensor in {**self.model, **self.optim}.items():
            if "trained" in name:
                tensor.add_(1e-3)

    def snapshot(self) -> Snapshot:
        parts: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {}
        parts["model"] = (None, self.model)
        parts["optim"] = ({"groups": []}, self.optim)
        return Snapshot(parts)


class Run:
    """Saves of one run, of which the two newest stay.

    Attributes:
        written: bytes that the last save wrote.
    """

    def __init__(self, path: Path, copies: int | None) -> None:
        path.mkdir()
        self.folder = CheckpointFolder(path)
        self.folder.has_links = True
        self.saves = Saves(self.folder, hashed=False)
        if copies:
            self.saves.share(copies)
        self.number, self.written = 0, 0
        self._known: set[tuple[int, int]] = set()

    def save(self, snapshot: Snapshot, frozen: Collection[tuple[str, str]]) -> None:
        self.number += 1
        begun = self.saves.begin(f"checkpoint-step-{self.number}", snapshot, frozen)
        progress = {"epoch": 0, "step": self.number, "global_step": self.number}
        fields = {**FIELDS, "progress": progress}
        self.saves.write(begun, fields, ALONE, self._weigh)

    def _weigh(self, entry: Entry) -> Path:
        """Adds up the bytes of the files that no save had before."""
        files = [p.stat() for p in entry.path.rglob("*") if p.is_file()]
        new = [found for found in files if (found.st_ino, found.st_mtime_ns) not in self._known]
        self._known |= {(found.st_ino, found.st_mtime_ns) for found in files}
        self.written = sum(found.st_size for found in new)
        return entry.path

    def retire(self) -> None:
        for entry in self.folder.entries()[2:]:
            self.folder.remove(entry.path)


def measure(place: Path, state: State) -> tuple[dict[str, float], dict[str, int]]:
    """Least seconds of a save of each kind, and the bytes that it wrote."""
    runs = {"all": Run(place / "all", None)}
    runs |= {f"copies={n}": Run(place / f"copies{n}", n) for n in (1, 2)}
    for run in runs.values():
        for _ in range(2):
            run.save(state.snapshot(), state.frozen)
            state.step()

    def saver(run: Run) -> Callable[[], None]:
        return lambda: run.save(state.snapshot(), state.frozen)

    works = {name: saver(run) for name, run in runs.items()}
    works["torch"] = lambda: torch_and_sync(place, {**state.model, **state.optim})
    found: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, seconds in interleaved(works, 1, warm=0).items():
            found[name] = min(seconds, found.get(name, seconds))
        state.step()
        for run in runs.values():
            run.retire()
    return found, {name: run.written for name, run in runs.items()}


def main(mebibytes: str = "1144", folder: str | None = None) -> None:
    torch.set_num_threads(1)
    for what, trained in (("95 % frozen", 0.05), ("all changes", 1.0)):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            state = State(int(mebibytes), trained)
            size = state.snapshot().size
            seconds, written = measure(Path(place), state)
        took = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items())
        print(f"{what}, {size / 1e9:.2f} GB: {took}")
        for name in ("copies=1", "copies=2"):
            ratio, share = seconds[name] / seconds["all"], written[name] / written["all"]
            time_bar, bytes_bar = (0.12, 0.06) if trained < 1 else (1.03, 1.03)
            check_target(f"{what}: time of a save, {name} / all written", ratio, time_bar)
            check_target(f"{what}: bytes written, {name} / all written", share, bytes_bar)
        ratio = seconds["all"] / seconds["torch"]
        check_target(f"{what}: time of a save, all written / torch.save + fsync", ratio, 1.0)


def _layer(mebibytes: int) -> torch.Tensor:
    return torch.randn(mebibytes, 1 << 18)


if __name__ == "__main__":
    main(*sys.argv[1:])
