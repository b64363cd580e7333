"""Every change of processes and of how a model is spread over them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hatbus_checkpoint.restore import Saved

sys.path.insert(0, str(Path(__file__).parent))
from sharded_checks import cases_done, check_same_values, newest

sys.path.pop(0)

HOWS = ("ddp-1", "ddp-2", "ddp-4", "fsdp-1", "fsdp-2", "fsdp-4", "hsdp-4")
UNTIED = ("ufsdp-4:ufsdp-2", "ufsdp-2:uhsdp-4", "uddp-1:ufsdp-4", "uhsdp-4:uddp-1")
HALF = ("halffsdp-2:halffsdp-2", "halffsdp-2:halfddp-1", "halfddp-2:halffsdp-2")
CASES = [*(f"{one}:{other}" for one in HOWS for other in HOWS), *UNTIED, *HALF]


@pytest.fixture(scope="module")
def runs(memory: Path) -> Path:
    """All cases."""
    return cases_done(memory / "every", *CASES, "whole:halffsdp-2", seconds=1700)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_what_is_spread_comes_back_bit_for_bit_on_other_processes(case: str, runs: Path) -> None:
    check_same_values(case, runs)


def test_the_scale_of_gradients_goes_on_with_the_same_bytes(runs: Path) -> None:
    ends = [newest(runs / name) for name in ("whole-halffsdp-2", "halffsdp-2-to-halffsdp-2")]
    assert ends[0].manifest["files"] == ends[1].manifest["files"]
    assert Saved(ends[0]).tree("progress")["scaler"]["_growth_tracker"] > 0


def test_one_of_several_replicas_is_written(runs: Path) -> None:
    path = newest(runs / "hsdp-4").path
    written = [len(load_file(path / f"rank-{rank}/model.safetensors")) for rank in range(4)]
    assert written[0] == written[1] > 0
    assert written[2] == written[3] == 0
