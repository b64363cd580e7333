"""Durations, rates and counts as people read them."""

from __future__ import annotations

import math


def clock_time(seconds: float) -> str:
    """``0:01:05``, ``3 d 2:00:00``; ``?`` for what nobody knows."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hour}:{minute:02}:{second:02}"


def short_time(seconds: float) -> str:
    """``850 us``, ``12.3 ms``, ``1.25 s``, or ``clock_time`` from two minutes on."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else clock_time(seconds)


def rate(per_second: float) -> str:
    """``5,210``, or ``3.2`` where the digits behind the point matter."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def of_total(number: int, total: int | None) -> str:
    """``3/5``, or ``3`` when the total is not known."""
    return f"{number:,}" if total is None else f"{number:,}/{total:,}"
