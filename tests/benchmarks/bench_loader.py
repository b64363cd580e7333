"""A batch of tensors in memory: hatbus.data.loader, torch's DataLoader, a bare index gather.

Bars: at least 8x as fast as torch's DataLoader, at most 1.5x of the bare gather (batch 32 of 64
features and a target); with two workers at most 1.02x of torch's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch
from target import check_target
from torch.utils.data import DataLoader, TensorDataset

from hatbus.data import loader

BATCH, FEATURES, ROWS, ROUNDS, ROUNDS_OF_WORKERS = 32, 64, 32 * 400, 15, 7


def bare(tensors: tuple[torch.Tensor, ...]) -> Iterable[list[torch.Tensor]]:
    """What somebody writes who wants no loader."""
    for rows in torch.randperm(ROWS).split(BATCH):
        yield [one[rows] for one in tensors]


def seconds(batches: Callable[[], Iterable[object]]) -> float:
    """The time of an epoch."""
    begun = time.perf_counter()
    for _ in batches():
        pass
    return time.perf_counter() - begun


def medians(ways: dict[str, Callable[[], Iterable[object]]], rounds: int) -> dict[str, float]:
    """The median time of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, batches in ways.items():
            taken[name].append(seconds(batches))
    return {name: median(found) for name, found in taken.items()}


def main() -> None:
    torch.set_num_threads(1)
    tensors = torch.randn(ROWS, FEATURES), torch.randint(10, (ROWS,))
    data = TensorDataset(*tensors)
    own, theirs = loader(data, BATCH), DataLoader(data, BATCH, shuffle=True)
    found = medians(
        {"hatbus": lambda: own, "torch": lambda: theirs, "bare": lambda: bare(tensors)}, ROUNDS
    )
    each = {name: 1e6 * taken / (ROWS // BATCH) for name, taken in found.items()}
    print(", ".join(f"{name} {value:.1f} us" for name, value in each.items()), "per batch")
    check_target("a batch in memory / torch's DataLoader", each["hatbus"] / each["torch"], 1 / 8)
    check_target("a batch in memory / a bare gather", each["hatbus"] / each["bare"], 1.5)
    own = loader(data, BATCH, num_workers=2, persistent_workers=True)
    theirs = DataLoader(data, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    found = medians({"hatbus": lambda: own, "torch": lambda: theirs}, ROUNDS_OF_WORKERS)
    check_target("a batch of two workers / torch's", found["hatbus"] / found["torch"], 1.02)


if __name__ == "__main__":
    main()
