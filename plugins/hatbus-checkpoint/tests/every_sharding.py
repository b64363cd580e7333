"""Every change of processes and of how a model is spread over them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_sharded import check_same_values, done

HOWS = ("ddp-1", "ddp-2", "ddp-4", "fsdp-1", "fsdp-2", "fsdp-4", "hsdp-4")
CASES = [f"{one}:{other}" for one in HOWS for other in HOWS]


@pytest.fixture(scope="module")
def runs(memory: Path) -> Path:
    """All cases."""
    return done(memory / "every", *CASES)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", CASES)
def test_what_is_spread_comes_back_bit_for_bit_on_other_processes(case: str, runs: Path) -> None:
    check_same_values(case, runs)
