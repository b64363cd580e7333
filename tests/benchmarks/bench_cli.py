"""Medians of the commands that must feel instant: ``python tests/benchmarks/bench_cli.py [runs]``.

Bars: ``hatbus --help`` at most 100 ms, ``hatbus plugins`` at most 150 ms, torch never imported.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import hatbus": ("-c", "import hatbus"),
    "hatbus --help": ("-m", "hatbus", "--help"),
    "hatbus --version": ("-m", "hatbus", "--version"),
    "hatbus plugins": ("-m", "hatbus", "plugins"),
    "hatbus events": ("-m", "hatbus", "events"),
}


def milliseconds(words: tuple[str, ...]) -> float:
    """Wall time of one process."""
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *words],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    return (time.perf_counter() - start) * 1000


def main(runs: int) -> None:
    """Prints one line per command."""
    print(f"{'command':<20}{'median ms':>10}{'best ms':>10}   ({runs} runs each)")
    for name, words in COMMANDS.items():
        milliseconds(words)
        times = [milliseconds(words) for _ in range(runs)]
        print(f"{name:<20}{statistics.median(times):>10.0f}{min(times):>10.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
