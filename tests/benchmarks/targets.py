"""Every target against what is measured here: ``python tests/benchmarks/targets.py [TEXT]``.

Runs each benchmark in this folder that declares targets (it imports ``check_target``), or those
whose name holds the text, and prints a table; the exit code says whether all are met.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from target import LINE

HERE = Path(__file__).resolve().parent
DECLARES = "from target import check_target"


def benchmarks(text: str = "") -> list[Path]:
    """Those that declare targets."""
    every = [path for path in sorted(HERE.glob("*.py")) if path != Path(__file__).resolve()]
    return [p for p in every if text in p.name and DECLARES in p.read_text("utf-8")]


def targets_of(benchmark: Path) -> list[tuple[str, str, str, str]]:
    """What a benchmark is measured to reach: what, measured, at most, and whether it is met.

    Raises:
        RuntimeError: it failed, or measured nothing.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(benchmark)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [match.groups() for line in done.stdout.splitlines() if (match := LINE.match(line))]
    if not found or (done.returncode and all(row[-1] == "met" for row in found)):
        raise RuntimeError(f"{benchmark.name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return found


def main(text: str = "") -> int:
    print(f"{'':8}{'measured':>9} {'at most':>9}")
    missed = 0
    for benchmark in benchmarks(text):
        print(benchmark.name)
        for what, measured, at_most, met in targets_of(benchmark):
            missed += met != "met"
            print(f"{met:8}{measured:>9} {at_most:>9}  {what}", flush=True)
    print(f"{missed} missed" if missed else "all met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
