"""Saving and loading against doing as much by hand; every ratio is measured interleaved.

Run it as ``python tests/benchmarks/bench_checkpoint.py [small|large]``; ``large`` saves a model of
100 million parameters with Adam (1.2 GB), and needs as much disk and three times as much memory.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hatbus_checkpoint import manifest, optimizer_state
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.restore import Saved
from hatbus_checkpoint.snapshot import Snapshot
from hatbus_checkpoint.tree import encode

FIELDS: dict[str, Any] = {
    "run": "bench",
    "lineage": 1,
    "progress": {"epoch": 0, "step": 1, "global_step": 1},
    "plugins": [],
    "settings": {},
    "metrics": {},
    "world_size": 1,
}


def tensors_of(mebibytes: int) -> dict[str, torch.Tensor]:
    """So many layers of 4 MiB."""
    return {f"layer{i}": torch.randn(1024, 1024) for i in range(mebibytes // 4)}


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleaved(
    works: dict[str, Callable[[], Any]], rounds: int, warm: int = 1
) -> dict[str, float]:
    """The least seconds of each (a busy machine only adds), after rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + warm):
        for name, work in works.items():
            found = timed(work)
            if turn >= warm:
                times[name].append(found)
    return {name: min(found) for name, found in times.items()}


def save(place: Path, snapshot: Snapshot) -> Path:
    """One durable, hashed save, in place of the one before."""
    folder = CheckpointFolder(place)
    for entry in folder.entries():
        shutil.rmtree(entry.path)
    return folder.write("checkpoint-step-1", snapshot.files(), FIELDS, hashed=False).path


def plain_file(place: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = place / "plain.safetensors"
    path.unlink(missing_ok=True)
    save_file(tensors, path)


def synced_file(place: Path, tensors: dict[str, torch.Tensor]) -> None:
    plain_file(place, tensors)
    with (place / "plain.safetensors").open("rb") as file:
        os.fsync(file.fileno())


def torch_and_sync(place: Path, state: Any) -> None:
    path = place / "torch.pt"
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def small(place: Path) -> None:
    """64 MiB: durable and hashed against a plain file; and what a background save blocks."""
    tensors = tensors_of(64)
    snapshot = Snapshot({"model": (None, tensors)})
    found = interleaved(
        {
            "hatbus": lambda: save(place, snapshot),
            "plain": lambda: plain_file(place, tensors),
            "synced": lambda: synced_file(place, tensors),
        },
        9,
    )
    show("save 64 MiB durably, hashed / safetensors save_file without fsync", found, "plain", 2.0)
    show(
        "  the same / safetensors save_file with fsync (what the disk allows)", found, "synced", 2.0
    )
    kept: dict[str, torch.Tensor] = {}
    buffers = {name: torch.empty_like(t) for name, t in tensors.items()}
    found = interleaved(
        {
            "hatbus": lambda: snapshot.copied(kept),
            "plain": lambda: [buffers[n].copy_(t) for n, t in tensors.items()],
        },
        9,
    )
    show("time blocked by a background save / a copy into kept buffers", found, "plain", 1.3)


def large(place: Path) -> None:
    """100 million parameters with Adam: save and load against torch's, and the memory it takes."""
    model = nn.ModuleList(nn.Linear(2048, 2048, bias=False) for _ in range(24))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def taken() -> Snapshot:
        optim = encode(optimizer_state.take(model, optimizer), inline=16)
        return Snapshot({"model": (None, dict(model.state_dict())), "optim": optim})

    size = taken().size
    grown = most_memory(lambda: save(place, taken()))
    kept: dict[str, torch.Tensor] = {}
    behind = most_memory(lambda: save(place, taken().copied(kept)))
    kept.clear()
    found = interleaved(
        {
            "hatbus": lambda: save(place, taken()),
            "plain": lambda: torch_and_sync(place, state),
        },
        3,
    )
    show(f"save {size / 1e9:.2f} GB durably, hashed / torch.save + fsync", found, "plain", 1.0)
    what = "memory above the run during that / size of the state"
    print(f"{what:<72} {grown / size:5.2f}  (bar 0.10)")
    what = "  the same of a background save, its copy included"
    print(f"{what:<72} {behind / size:5.2f}  (bar 1.10)")
    path = next(iter(CheckpointFolder(place).entries()))
    verified = timed(lambda: manifest.verify(path.path))  # a resume begins with it
    found = interleaved(
        {
            "hatbus": lambda: load(Saved(path), model, optimizer),
            "plain": lambda: load_torch(place, model, optimizer),
        },
        3,
    )
    show("load / torch.load(mmap=True) + copy", found, "plain", 1.0)
    print(f"  verification apart, from the disk: {verified:.2f} s")


def load(saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict(saved.model())
    optimizer_state.give(model, optimizer, saved.tree("optim"), strict=True)


def load_torch(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = torch.load(place / "torch.pt", mmap=True, weights_only=True)
    model.load_state_dict(state["model"])
    for one in state["optimizer"]["state"].values():
        for name, value in one.items():
            one[name] = value.clone()
    optimizer.load_state_dict(state["optimizer"])


def most_memory(work: Callable[[], Any]) -> int:
    """Bytes that this process held at most meanwhile, above what it held before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmHWM")
    work()
    return memory("VmHWM") - before


def memory(field: str) -> int:
    """A field of this process's status in bytes; ``VmHWM`` is the most since it was cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def show(what: str, found: dict[str, float], base: str, bar: float) -> None:
    ratio = found["hatbus"] / found[base]
    seconds = ", ".join(f"{name} {value * 1e3:.0f} ms" for name, value in found.items())
    print(f"{what:<72} {ratio:5.2f}  (bar {bar:.2f}; {seconds})")


def main(which: str = "small") -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        (large if which == "large" else small)(Path(place))


if __name__ == "__main__":
    main(*sys.argv[1:])
