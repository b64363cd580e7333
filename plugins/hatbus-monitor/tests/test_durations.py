"""Times and counts as people read them."""

from __future__ import annotations

import pytest

from hatbus_monitor.durations import clock_time, of_total, rate, short_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.6, "0:01:00"),
        (3661, "1:01:01"),
        (200_000, "2 d 7:33:20"),
        (float("nan"), "?"),
        (-1, "?"),
    ],
)
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.4e-6, "2 us"), (0.01234, "12.3 ms"), (1.254, "1.25 s"), (125, "0:02:05")],
)
def test_short_time(seconds: float, text: str) -> None:
    assert short_time(seconds) == text


def test_rates_and_counts() -> None:
    assert [rate(n) for n in (5210.4, 99.96, 3.16)] == ["5,210", "100", "3.16"]
    assert (of_total(3, 5), of_total(1200, None)) == ("3/5", "1,200")
