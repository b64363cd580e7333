"""Tries every pair and prints the table; fails where one is not what ``docs/works-with.md`` says.

``python tests/works_with/run.py [--record] [--sample] [--only TEXT] [--keep FOLDER]``: ``--record``
writes what was found to the page, ``--sample`` tries what needs no package beyond hatbus's own,
and ``--only`` the pairs whose name holds the text. One process imports torch and hatbus; from it
one is forked for some pairs of a library, ``--at-once`` so many (2); and from that one the runs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "docs")]

from works_with_page import RESULTS, recorded, works_with_page  # noqa: E402 - the path is set above

from works_with import pairs  # noqa: E402 - the same
from works_with.pair import Pair  # noqa: E402 - the same

IN_A_PROCESS = 30
MODULES = {
    "mosaicml-streaming": ("streaming",),
    "pytorch-ignite": ("ignite.metrics",),
    "torch": ("torch._dynamo", "torch._inductor.compile_fx", "torch.export"),
    "transformers": (
        "transformers.optimization",
        "transformers.models.bert.modeling_bert",
        "transformers.models.gpt2.modeling_gpt2",
    ),
    "peft": ("peft", "transformers.models.bert.modeling_bert"),
    "torchvision": ("torchvision.models.detection",),
    "scikit-learn": ("sklearn.metrics",),
    "torchdata": ("torchdata.nodes", "torchdata.stateful_dataloader"),
    "torcheval": ("torcheval.metrics",),
    "tensorboard": (),
    "safetensors": (),
    "attrs": ("attr",),
    "onnxruntime": ("onnxruntime", "onnx", "torch.onnx"),
    "tensorboard-reducer": ("tensorboard_reducer",),
}
"""What a library's process imports before it forks, where it is not the distribution's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Tries the pairs that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=None)
    given = parser.parse_args(argv)
    wanted = [p for p in pairs.every(sample=given.sample) if given.only in p.key]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=quick_folder(), ignore_cleanup_errors=True) as name:
        found = tried_by_library(wanted, given.keep or Path(name), given.at_once)
    bad = [key for key, row in found.items() if row["problem"]]
    for key in bad:
        print(f"NOT AS SAID: {key}: {found[key]['problem']}")
    before = recorded() if RESULTS.exists() else {}
    rows = {p.key: row_of(p, found[p.key]["version"]) for p in wanted if p.key not in bad}
    if not (given.sample or given.only):
        print(works_with_page(rows))
    stale = [] if given.record else [key for key in rows if before.get(key) != rows[key]]
    for key in stale:
        print(f"NOT AS RECORDED: {key}: {rows[key]}; recorded: {before.get(key, 'nothing')}")
    if given.record:
        rows = before | rows
        rows = {pair.key: rows[pair.key] for pair in pairs.every() if pair.key in rows}
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
        (ROOT / "docs/works-with.md").write_text(works_with_page(rows), "utf-8")
    print(f"{len(wanted)} pairs in {time.monotonic() - began:.0f} s, {len(bad)} not as said")
    return 1 if bad or stale or not wanted else 0


def quick_folder() -> str | None:
    """The machine's memory as a folder, where it has room: a pair's many saves wait for no disk."""
    place = Path("/dev/shm")
    return str(place) if place.is_dir() and shutil.disk_usage(place).free > 4e9 else None


def row_of(pair: Pair, version: str) -> dict[str, str]:
    """What is recorded of a pair."""
    return {"version": version, "verdict": pair.verdict, "note": pair.note}


def tried_by_library(
    wanted: Sequence[Pair], folder: Path, at_once: int
) -> dict[str, dict[str, str]]:
    """The outcome of every pair, from processes that each try some of one library."""
    warm_up()
    libraries = dict.fromkeys(pair.library for pair in wanted)
    waiting = [
        mine[first : first + IN_A_PROCESS]
        for library in libraries
        for mine in [[pair for pair in wanted if pair.library == library]]
        for first in range(0, len(mine), IN_A_PROCESS)
    ]
    running: dict[int, tuple[list[Pair], Path]] = {}
    found: dict[str, dict[str, str]] = {}
    count = 0
    while waiting or running:
        while waiting and len(running) < at_once:
            mine, count = waiting.pop(0), count + 1
            place = (folder / f"{count}-{mine[0].library}").resolve()
            running[library_process(mine, place)] = mine, place
        child, _ = os.wait()
        mine, place = running.pop(child)
        found |= {pair.key: {"version": "", "problem": "its process died"} for pair in mine}
        found |= dict(read(place / "found.jsonl"))
    return found


def warm_up() -> None:
    """Imports what every run needs; torch imports much only when it is used first."""
    import torch

    for module in ("works_with.trial", "hatbus.callbacks", "hatbus.parallel.sharding"):
        importlib.import_module(module)
    torch.set_num_threads(1)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def library_process(mine: Sequence[Pair], place: Path) -> int:
    """Forks the process that imports a library and tries its pairs."""
    place.mkdir(parents=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            try_library(mine[0].library, mine, place)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    return child


def try_library(library: str, mine: Sequence[Pair], place: Path) -> None:
    """Tries a library's pairs, and writes down what comes of each."""
    from works_with import trial

    warnings.simplefilter("ignore")  # theirs
    problem = ""
    try:
        torchvision_beside_this_torch()
        for module in MODULES.get(library, (library.replace("-", "_"),)):
            importlib.import_module(module)
        version = importlib.metadata.version(library)
    except Exception as error:
        version, problem = "", f"cannot be imported: {type(error).__name__}: {error}"
    with (place / "found.jsonl").open("w") as file:
        for number, pair in enumerate(mine):
            began = time.monotonic()
            told = problem or trial.tried(pair, place / str(number))
            if not told:  # what is not as said may be looked at, with --keep
                shutil.rmtree(place / str(number), ignore_errors=True)
            took = time.monotonic() - began
            print(f"{'BAD' if told else 'ok ':3} {took:5.1f} s  {pair.key}", flush=True)
            row = {"version": version.split("+")[0], "problem": told}
            print(json.dumps([pair.key, row]), file=file, flush=True)


def torchvision_beside_this_torch() -> None:
    """Lets torchvision be imported beside a torch that its compiled operators are not built for.

    So it is with the wheels of an index that has torch for the CPU and torchvision for CUDA. The
    operators have no kernels then: calling one is an error.
    """
    import torch

    if importlib.util.find_spec("torchvision") is None:
        return
    place = Path(importlib.util.find_spec("torchvision").submodule_search_locations[0], "_C.so")
    try:
        torch.ops.load_library(place)
    except OSError:
        for name in ("nms", "qnms"):
            boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", boxes)


def read(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """What a library's process wrote down."""
    if file.exists():
        for line in file.read_text("utf-8").splitlines():
            key, row = json.loads(line)
            yield key, row


if __name__ == "__main__":
    sys.exit(main())
