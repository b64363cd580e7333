"""All plugins in shards, and four processes; collected by ``tox -e ranks`` alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_on

REFUSED = {
    "fuse_bn": "JobError: fuse_bn cannot use a sharded model (FSDP2); fuse it before, or train "
    "with DDP",
    "closure, LBFGS": "JobError: optimizer LBFGS needs whole parameters, and the model is to be in "
    "shards; choose another, or parallel = 'ddp'",
}


@pytest.mark.timeout(600)
def test_every_plugin_does_in_shards_what_it_does_under_ddp_or_is_refused(tmp_path: Path) -> None:
    found = run_on(2, Path(__file__).with_name("shards_run.py"), tmp_path, patience=500)
    names = [name.removesuffix(": shards") for name in found[0] if name.endswith(": shards")]
    assert len(names) > 20
    for mine in found:
        for name in names:
            ddp, shards = mine[f"{name}: ddp"], mine[f"{name}: shards"]
            assert isinstance(ddp, list), (name, ddp)
            if name in REFUSED:
                assert shards == REFUSED[name]
            else:
                assert shards == pytest.approx(ddp, rel=1e-6, abs=1e-6), name
        assert mine["split"].startswith(
            "JobError: the model's '0.weight' is split over a mesh of (2,) by a plan of tensor "
            "parallelism, whose processes would have to see the same samples"
        )


@pytest.mark.timeout(600)
def test_four_processes_train_in_shards_of_all_and_of_two_groups(tmp_path: Path) -> None:
    found = run_on(4, Path(__file__).with_name("modes_run.py"), tmp_path, patience=500)
    for how in ("blocks", "hsdp", "scaled"):
        by = "ddp scaled" if how == "scaled" else "ddp"
        for one in found:
            for part in ("losses", "validated", "weights"):
                near = pytest.approx(one[by][part], rel=1e-6, abs=1e-6)  # sums of four
                assert one[how][part] == near, (how, part)
    parts = {how: sum(one[how]["local"] for one in found) for how in ("ddp", "blocks", "hsdp")}
    assert parts["blocks"] * 4 == parts["hsdp"] * 2 == parts["ddp"]
    assert {one["hsdp"]["scattered"][0] for one in found} == {6}
    for one in found:
        assert one["meta"]["first"] == one["meta"]["by hand"]
