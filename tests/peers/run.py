"""Measures hatbus beside other trainers, and tries what they promise: ``tox -e peers``.

``python tests/peers/run.py [--record] [--quick] [--peers a,b] [--only TEXT]``: ``--record`` writes
``docs/comparison.json``, and from it ``docs/comparison.md`` and the picture; ``--quick`` does every
measure once, in a few steps, to see that all works; ``--only`` those measures and trials whose name
holds the text, which are recorded beside what was there. Every peer lives in a process of
its own that waits while the others are measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "docs")]

from comparison_page import RECORD, write_page  # noqa: E402 - the path is set above

from peers.measures import HAND, MEASURES, Measure, shortened  # noqa: E402 - the same

DISTRIBUTIONS = {
    "hatbus": "hatbus",
    "ignite": "pytorch-ignite",
    "lightning": "pytorch-lightning",
    "accelerate": "accelerate",
    "transformers": "transformers",
    "mmengine": "mmengine",
}
PEERS = (HAND, *DISTRIBUTIONS)
TRIALS = (
    "killed while saving",
    "disk full",
    "exact in mid-epoch",
    "error in a callback",
    "two of one class",
    "order",
)
KILLS, STARTS = 6, 2
PARTS = ("promises", "measures", "start")


class Peer:
    """The process of a peer."""

    def __init__(self, name: str, log: Any) -> None:
        self.name = name
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        worker = [sys.executable, "-W", "ignore", str(ROOT / "tests/peers/worker.py"), name]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            worker, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment
        )

    def ask(self, **request: Any) -> Any:
        """What its process found; None where that is the end of a turn.

        Raises:
            RuntimeError: it failed, or ended.
        """
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer.get("found")

    def leave(self) -> None:
        with self.process:  # closes its pipes, which ends it
            pass


@contextmanager
def peers_of(names: Sequence[str], log: Path) -> Iterator[list[Peer]]:
    with log.open("a") as file:
        started = [Peer(name, file) for name in names]
        try:
            yield started
        finally:
            for peer in started:
                peer.leave()


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and tries, prints, and perhaps records."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--only", default="")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--log", type=Path, default=Path(os.devnull))
    given = parser.parse_args(argv)
    names = [name for name in PEERS if name in given.peers.split(",")]
    began = time.monotonic()
    record: dict[str, Any] = {"date": str(date.today()), "machine": machine()}
    record["versions"] = versions(names)
    parts = given.parts.split(",")
    others = [name for name in names if name != HAND]
    if "promises" in parts:
        with peers_of(others, given.log) as peers:
            record["promises"] = tried(peers, given.quick, given.only)
    if "measures" in parts:
        with peers_of(names, given.log) as peers:
            record["same work"] = same_work(peers)
            record["measures"] = measured(peers, given.quick, given.only)
    if "start" in parts and given.only in "start":
        record["start"] = starts(names, 1 if given.quick else STARTS)
    record["minutes"] = round((time.monotonic() - began) / 60, 1)
    print(f"{record['minutes']} minutes")
    if given.record:
        is_whole = not given.only and set(parts) == set(PARTS)
        record = record if is_whole else beside(json.loads(RECORD.read_text("utf-8")), record)
        RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        write_page(record)
    return 0


def beside(before: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The record with what was there of what has not been done again."""
    both = {part: {**before.get(part, {}), **record.get(part, {})} for part in PARTS}
    measures = both["measures"]
    both["measures"] = {name: measures[name] for name in MEASURES if name in measures}
    minutes = round(before["minutes"] + record["minutes"], 1)
    return {**before, **record, **both, "minutes": minutes}


def machine() -> str:
    """Processor, cores and memory, and what is run on them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{model or platform.machine()}, {cores} cores, {memory:.0f} GiB; {system}"


def versions(names: Sequence[str]) -> dict[str, str]:
    wanted = {"torch": "torch"} | {n: DISTRIBUTIONS[n] for n in names if n != HAND}
    return {n: importlib.metadata.version(d).split("+")[0] for n, d in wanted.items()}


def same_work(peers: Sequence[Peer]) -> dict[str, float]:
    """How far every peer's weights are from those by hand, all duties but the average on.

    Raises:
        RuntimeError: a peer does other work.
    """
    found = {peer.name: peer.ask(check=True)["weights_differ_by"] for peer in peers}
    other = [name for name, far in found.items() if not far < 1e-5]
    if other:
        raise RuntimeError(
            f"{', '.join(other)} end with other weights than the loop by hand: {found}"
        )
    return found


def measured(peers: Sequence[Peer], quick: bool, only: str) -> dict[str, dict[str, Any]]:
    """Every measure, of all peers in turn, round after round."""
    found: dict[str, dict[str, Any]] = {}
    for name, measure in MEASURES.items():
        able = [p for p in peers if not measure.only or p.name in measure.only]
        if only not in name or not able:
            continue
        rounds = [round_of(able, measure, quick) for _ in range(1 if quick else measure.rounds)]
        figures = {p.name: median(one[p.name] for one in rounds) for p in able}
        found[name] = {
            "what": measure.what,
            "figures": {k: round(v, 3) for k, v in figures.items()},
        }
        print(f"{name} ({measure.what}): {found[name]['figures']}", flush=True)
    return found


def round_of(peers: Sequence[Peer], measure: Measure, quick: bool) -> dict[str, float]:
    """One figure of each; with a base, the difference of two runs that follow each other."""
    jobs = [job for job in (measure.job, measure.beside) if job is not None]
    asked = [asdict(shortened(job) if quick else job) for job in jobs]
    if measure.in_turns:
        return turns_of(peers, asked[0], measure.read)
    found = {}
    for peer in peers:
        value, *base = (peer.ask(job=job, read=measure.read) for job in asked)
        value -= sum(base)
        found[peer.name] = value / measure.over
    return found


def turns_of(peers: Sequence[Peer], job: dict[str, Any], read: str) -> dict[str, float]:
    """One figure of each, of runs that all go on side by side, a turn of each after the other."""
    found = {p.name: p.ask(job=job, read=read, **{"in turns": True}) for p in peers}
    while waiting := [p for p in peers if found[p.name] is None]:
        for peer in waiting:
            found[peer.name] = peer.ask(turn="begins")
    return found


def tried(peers: Sequence[Peer], quick: bool, only: str) -> dict[str, dict[str, Any]]:
    """What became of every promise."""
    found: dict[str, dict[str, Any]] = {}
    for trial in TRIALS:
        if only not in trial:
            continue
        options = {"kills": 2 if quick else KILLS} if trial == TRIALS[0] else {}
        found[trial] = {p.name: p.ask(promise=trial, **{"with": options}) for p in peers}
        for name, what in found[trial].items():
            print(f"{trial}: {name}: {what['verdict']}: {what['told']}", flush=True)
    return found


def starts(names: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, and the most memory, of a script that trains ten steps; medians."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(start(name))
    kinds = ("seconds", "processor seconds", "MiB")
    return {
        name: {
            kind: round(median(row), 2)
            for kind, row in zip(kinds, zip(*rows, strict=True), strict=True)
        }
        for name, rows in found.items()
    }


def start(name: str) -> tuple[float, float, float]:
    """Seconds, processor seconds and MiB of one process."""
    script = [sys.executable, "-W", "ignore", str(ROOT / "tests/peers/start.py"), name]
    began = time.perf_counter()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        script, stdout=quiet, stderr=quiet, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name}: its script ended with {process.returncode}")
    seconds = time.perf_counter() - began
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
