"""A run whose tensors are spread over processes is saved in parts, and goes on on any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hatbus_checkpoint import manifest, weights_of
from hatbus_checkpoint.exchange import to_single
from hatbus_checkpoint.folder import CheckpointFolder, Entry, entry_of
from hatbus_checkpoint.parts import whole_of
from hatbus_checkpoint.restore import Saved

CASES = ("fsdp-2:fsdp-2", "fsdp-2:ddp-1", "ddp-1:fsdp-2", "fsdp-2:hsdp-4")
"""A sample; ``every_sharding.py`` does all."""
WORLDS = Path(__file__).parent / "worlds.py"


def start(*words: str, seconds: float = 280) -> str:
    """What the program of runs of several processes prints."""
    paths = os.pathsep.join([str(WORLDS.parent), *sys.path])
    more = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [sys.executable, str(WORLDS), *words],
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sys.stderr.write(done.stderr[-6000:])
    return done.stdout


@pytest.fixture(scope="module")
def runs(memory: Path) -> Path:
    """All cases: a run that stops, and its resume, each on so many processes."""
    return done(memory / "sharded", "asyncfsdp-2", "fsdp-2", *CASES)


def done(folder: Path, *cases: str) -> Path:
    """Does cases of ``sharded_cases.py`` in a folder."""
    codes: dict[str, list[int]] = json.loads(start(str(folder), *cases))
    assert not any(any(found) for found in codes.values()), codes
    return folder


def newest(path: Path) -> Entry:
    found = CheckpointFolder(path).latest()
    assert found is not None
    return found


def whole(entry: Entry) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint that is spread or could be, whole, as ``Looks`` names it."""
    saved = Saved(entry)
    found = {f"model/{n}": value for n, value in saved.model().items()}
    for name, state in saved.tree("optim")["state"].items():
        found |= {f"optim/{name}/{key}": value for key, value in state.items()}
    found |= {f"ema/{n}": v for n, v in saved.plugins()["ema"]["averages"].items()}
    return {name: whole_of(value) for name, value in found.items()}


def seen(path: Path, rank: int = 0) -> Any:
    return torch.load(path / f"found-{rank}.pt")


@pytest.mark.parametrize("case", CASES)
def test_what_is_spread_comes_back_bit_for_bit_on_other_processes(case: str, runs: Path) -> None:
    check_same_values(case, runs)


def check_same_values(case: str, runs: Path) -> None:
    saved = whole(newest(runs / case.partition(":")[0]))
    found = seen(runs / case.replace(":", "-to-"))
    assert found["state"].keys() == saved.keys()
    for name, value in found["state"].items():
        assert value.equal(saved[name]), name
    assert len(found["losses"]) == 3


def test_a_run_goes_on_with_the_same_bytes(runs: Path) -> None:
    ends = [newest(p) for p in (runs / "fsdp-2" / "whole", runs / "fsdp-2-to-fsdp-2")]
    assert ends[0].manifest["progress"]["global_step"] == 7
    files = [{**e.manifest["files"]} for e in ends]
    for found in files:
        found.pop("plugins/checkpoint.json", None)
    assert files[0] == files[1]
    for rank in (0, 1):
        losses = [seen(e.path.parent, rank)["losses"] for e in ends]
        assert losses[0][4:] == losses[1]


def test_it_goes_on_in_the_background_with_the_same_bytes(runs: Path) -> None:
    one, other = (newest(runs / name / "whole").manifest for name in ("asyncfsdp-2", "fsdp-2"))
    assert one["files"] == other["files"]
    paths = sorted(p.name for p in (runs / "asyncfsdp-2" / "whole").glob("checkpoint-*/"))
    assert len(paths) == 3


def test_no_process_writes_what_others_have(runs: Path) -> None:
    files = newest(runs / "fsdp-2").manifest["files"]
    for stem in ("model", "optim", "plugins/ema"):
        each = [files[f"rank-{rank}/{stem}.safetensors"]["size"] for rank in (0, 1)]
        assert all(size > 100 for size in each)
    assert "model.safetensors" in files  # what is not spread: buffers
    assert set(load_file(newest(runs / "fsdp-2").path / "model.safetensors")) == {
        "stem.1.running_mean",
        "stem.1.running_var",
        "stem.1.num_batches_tracked",
    }
    replicas = newest(runs / "fsdp-2-to-hsdp-4").manifest["files"]
    written = [f"rank-{r}/model.safetensors" in replicas for r in range(4)]
    assert written == [True, True, False, False]


def test_older_versions_refuse_it_by_its_format_and_plain_runs_keep_theirs(runs: Path) -> None:
    assert newest(runs / "fsdp-2").manifest["format"] == manifest.SHARDED
    assert newest(runs / "ddp-1").manifest["format"] == manifest.PLAIN


def test_one_file_for_one_machine_is_read_by_safetensors(runs: Path, tmp_path: Path) -> None:
    entry = newest(runs / "fsdp-2")
    to_single(Saved(entry), tmp_path / "raw.safetensors")
    to_single(Saved(entry), tmp_path / "ema.safetensors", "ema")
    saved = whole(entry)
    for kind, view in (("raw", "model"), ("ema", "ema")):
        found = load_file(tmp_path / f"{kind}.safetensors")
        names = {n for n in saved if n.startswith("model/")}
        assert {f"model/{n}" for n in found} == names
        for name, value in found.items():
            tied = name.replace("other.weight", "one.weight")  # one average for both
            assert value.equal(saved[f"{view}/{tied}"]), name
    assert weights_of(entry.path)["head.weight"].equal(saved["model/head.weight"])


@pytest.mark.parametrize("name", ["rank-1/model.safetensors", "rank-0/optim.safetensors"])
def test_a_damaged_part_is_a_damaged_checkpoint(name: str, runs: Path, tmp_path: Path) -> None:
    folder = CheckpointFolder(runs / "fsdp-2" / "whole")
    entry = newest(folder.path)
    file = entry.path / name
    before = file.read_bytes()
    try:
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        found = folder.latest()
        assert found is not None
        assert found.path != entry.path
    finally:
        file.write_bytes(before)
    assert entry_of(entry.path) == entry_of(newest(folder.path).path)
