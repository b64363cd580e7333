"""Runs of two processes of which the first shares files between its saves.

As a program: ``shared_files.py FOLDER`` trains each of ``RUNS`` into a folder of its name, and goes
on with it in new processes; prints the exit codes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import sharded_cases
from sharded_cases import go

from hatbus_checkpoint.unchanged import unchanged

SHARING = {"incremental": True, "copies": 1}
RUNS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "ddp": ("ddp", (6,), {}),
    "ddp-shared": ("ddp", (3, 6), {**SHARING, "async_save": True}),
    "fsdp-shared": ("fsdp", (2,), SHARING),
}
"""How the model is held, the steps after which processes end, and options of the checkpoint."""


class Frozen(sharded_cases.Net):
    """A layer of it is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.one.requires_grad_(False)
        self.stem[1].requires_grad_(False)


def main(folder: Path) -> None:
    unchanged.LEAST = 1  # type: ignore[misc]
    sharded_cases.Net = Frozen  # type: ignore[misc]
    codes = {}
    for name, (how, ends, options) in RUNS.items():
        saves = {"save_interval": 1, "save_hash": False, **options}
        codes[name] = [
            code for steps in ends for code in go(f"{how}-2", folder / name, steps, **saves)
        ]
    print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
