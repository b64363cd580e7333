"""The half cosine that four of the schedules are made of."""

from __future__ import annotations

from math import cos, pi


def annealing_cos(start: float, end: float, pct: float) -> float:
    """From ``start`` at pct 0 to ``end`` at pct 1 along a half cosine, exact at both ends.

    ``w = (1 + cos(pi * pct)) / 2``; ``start * w + end * (1 - w)``. Source: Loshchilov and Hutter,
    SGDR, equation 5; ``hat.callbacks.OneCycleUpdater.annealing_cos``.
    """
    weight = 0.5 + 0.5 * cos(pi * pct)
    return start * weight + end * (1.0 - weight)
