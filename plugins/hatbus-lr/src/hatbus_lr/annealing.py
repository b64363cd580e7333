"""The half cosine that four of the schedules are made of."""

from __future__ import annotations

from math import cos, pi


def falling(pct: float) -> float:
    """A half cosine from 1 at pct 0 to 0 at pct 1: ``(1 + cos(pi * pct)) / 2``."""
    return 0.5 + 0.5 * cos(pi * pct)


def annealing_cos(start: float, end: float, pct: float) -> float:
    """From ``start`` at pct 0 to ``end`` at pct 1 along a half cosine, exact at both ends.

    ``start * w + end * (1 - w)``, w the half cosine of ``falling``. Source: Loshchilov and Hutter,
    SGDR, equation 5; ``hat.callbacks.OneCycleUpdater.annealing_cos``.
    """
    weight = falling(pct)
    return start * weight + end * (1.0 - weight)
