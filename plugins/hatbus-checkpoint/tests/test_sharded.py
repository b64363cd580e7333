"""A run whose tensors are spread over processes is saved in parts, and goes on on any of them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hatbus.errors import CheckpointError
from hatbus_checkpoint import manifest, weights_of
from hatbus_checkpoint.exchange import to_single
from hatbus_checkpoint.folder import entry_of
from hatbus_checkpoint.parts import Box
from hatbus_checkpoint.restore import Saved

sys.path.insert(0, str(Path(__file__).parent))
from sharded_checks import cases_done, check_same_values, newest, seen, whole

sys.path.pop(0)

pytestmark = pytest.mark.timeout(900)  # the first test waits for all runs
CASES = ("fsdp-2:fsdp-2", "fsdp-2:ddp-1", "ddp-1:fsdp-2")
"""A sample; ``every_sharding.py`` does all."""


@pytest.fixture(scope="module")
def runs(memory: Path) -> Path:
    """All cases: a run that stops, and its resume, each on so many processes."""
    more = ("whole:fsdp-2", "begun:fsdp-2", "damaged:fsdp-2")
    return cases_done(memory / "sharded", *CASES, *more)


@pytest.mark.parametrize("case", CASES)
def test_what_is_spread_comes_back_bit_for_bit_on_other_processes(case: str, runs: Path) -> None:
    check_same_values(case, runs)


def test_a_run_goes_on_with_the_same_bytes(runs: Path) -> None:
    """The one that was not stopped has saved in the background."""
    ends = [newest(p) for p in (runs / "whole-fsdp-2", runs / "fsdp-2-to-fsdp-2")]
    assert ends[0].manifest["progress"]["global_step"] == 7
    assert ends[0].manifest["files"] == ends[1].manifest["files"]
    for rank in (0, 1):
        losses = [seen(e.path.parent, rank)["losses"] for e in ends]
        assert losses[0][4:] == losses[1]
    steps = sorted(p.name.split("-")[2] for p in (runs / "whole-fsdp-2").glob("checkpoint-*/"))
    assert steps == ["3", "6", "7"]


def test_all_processes_pass_over_a_checkpoint_with_a_damaged_part(runs: Path) -> None:
    """They go on from the one before, so they end with the same bytes."""
    paths = [runs / "damaged-fsdp-2", runs / "whole-fsdp-2"]
    ends = [newest(path).manifest["files"] for path in paths]
    assert ends[0] == ends[1]
    steps = sorted(p.name.split("-")[2] for p in paths[0].glob("checkpoint-*/"))
    assert steps == ["3", "4", "6", "7"]


def test_no_process_writes_what_others_have(runs: Path) -> None:
    files = newest(runs / "fsdp-2").manifest["files"]
    for stem in ("model", "optim", "plugins/ema"):
        each = [files[f"rank-{rank}/{stem}.safetensors"]["size"] for rank in (0, 1)]
        assert all(size > 100 for size in each)
    assert "model.safetensors" in files  # what is not spread: buffers
    whole_ones = load_file(newest(runs / "fsdp-2").path / "model.safetensors")
    assert {name.rpartition(".")[2] for name in whole_ones} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


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
    assert weights_of(entry.path)["student.head.weight"].equal(saved["model/student.head.weight"])


def test_a_model_that_is_spread_begins_with_saved_weights(runs: Path) -> None:
    saved = whole(newest(runs / "fsdp-2"))
    for rank in (0, 1):
        found = torch.load(runs / "fsdp-2" / f"begun-{rank}.pt")
        assert found
        for name, value in found.items():
            assert value.equal(saved[f"model/{name}"]), name


def test_a_process_that_goes_on_with_its_parts_reads_no_other(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "own"
    shutil.copytree(newest(runs / "fsdp-2").path, path)
    for stem in ("model", "optim", "plugins/ema"):
        (path / f"rank-1/{stem}.safetensors").unlink()
    saved = Saved(entry_of(path), rank=0, mapped=True)
    model, state = saved.model(), saved.tree("optim")["state"]
    box = Box((0, 0), (3, 3))  # the first process's rows of five
    for value in (model["student.stem.0.weight"], state["student.stem.0.weight"]["exp_avg"]):
        assert value.shape == (5, 3)
        assert value.box(box).shape == (3, 3)
        with pytest.raises(CheckpointError, match="garbled"):
            value.whole()
