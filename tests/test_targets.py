"""Targets are gathered from the benchmarks that declare them; every cost that grows is measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import growth
import targets

MEETS = "from target import check_target\ncheck_target('a ratio: of two', 0.5, 1)\n"
MISSES = f"{MEETS}print('more')\nsys.exit(not check_target('another', 1.234567, 1.2))\n"


def benchmark(folder: Path, text: str) -> Path:
    path = folder / "bench.py"
    path.write_text(f"import sys\nsys.path.append({str(targets.HERE)!r})\n{text}", "utf-8")
    return path


def test_the_targets_of_a_benchmark_are_read_whether_they_are_met_or_missed(tmp_path: Path) -> None:
    met = ("a ratio: of two", "0.500", "1", "met")
    assert targets.targets_of(benchmark(tmp_path, MEETS)) == [met]
    missed = ("another", "1.235", "1.2", "MISSED")
    assert targets.targets_of(benchmark(tmp_path, MISSES)) == [met, missed]


@pytest.mark.parametrize("text", ["", "raise ValueError('broken')", f"{MEETS}raise ValueError"])
def test_a_benchmark_that_fails_or_measures_nothing_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(RuntimeError, match=r"bench\.py ended with"):
        targets.targets_of(benchmark(tmp_path, text))


def test_the_benchmarks_that_declare_targets_are_found() -> None:
    names = {path.name for path in targets.benchmarks()}
    assert {"growth.py", "bench_incremental.py", "bench_validation.py"} <= names
    assert not names & {"target.py", "targets.py", "bench_loop.py"}


def test_the_exponent_is_the_slope_of_the_larger_sizes() -> None:
    sizes = (1, 10, 100, 1_000, 10_000, 100_000)
    assert growth.exponent(sizes, [5.0] * 6) == pytest.approx(0)
    assert growth.exponent(sizes, [5.0, 5.0, 5.0, 9.0, 90.0, 900.0]) == pytest.approx(1)
    assert growth.exponent(sizes, [n**1.5 for n in sizes]) == pytest.approx(1.5)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("cost", growth.GROWTHS, ids=lambda one: f"{one.what} by {one.per}")
def test_every_cost_that_grows_is_measured(cost: Any) -> None:
    with cost.costs(max(cost.sizes[0], 2)) as seconds:
        assert seconds() > 0
        assert seconds() > 0
