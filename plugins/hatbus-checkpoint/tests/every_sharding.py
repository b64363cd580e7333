"""Every change of processes and of how a model is spread over them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sharded_checks import cases_done, check_same_values, newest

sys.path.pop(0)

HOWS = ("ddp-1", "ddp-2", "ddp-4", "fsdp-1", "fsdp-2", "fsdp-4", "hsdp-4")
TP = ("utp-4:ufsdp-2", "ufsdp-2:utp-4", "utp-4:utp-4", "uddp-1:utp-4", "utp-4:uddp-1")
CASES = [*(f"{one}:{other}" for one in HOWS for other in HOWS), *TP]


@pytest.fixture(scope="module")
def runs(memory: Path) -> Path:
    """All cases."""
    return cases_done(memory / "every", *CASES, seconds=1700)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_what_is_spread_comes_back_bit_for_bit_on_other_processes(case: str, runs: Path) -> None:
    check_same_values(case, runs)


def test_one_of_several_replicas_is_written(runs: Path) -> None:
    files = newest(runs / "hsdp-4").manifest["files"]
    written = [f"rank-{rank}/model.safetensors" in files for rank in range(4)]
    assert written == [True, True, False, False]
