"""Optimizers that find their step size themselves, such as Prodigy and D-Adaptation.

They keep an estimate ``d`` per group, which begins at 1e-6 and multiplies ``lr``. It grows by how
far the weights have come, and with ``lr`` at 1e-3 a step is less than a float's last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hatbus.log import log
from hatbus_lr.field import Group

_UNGROWN: Final = 1e-4
"""An estimate below it is at its beginning, or near it."""
_TOO_LOW: Final = 0.1
"""Every optimizer of the kind grows its estimate from here on; some do at 0.01."""


def warn_of_low_lr(who: str, optimizer: Any, highest: Callable[[Group], float]) -> None:
    """Warns when a schedule keeps the lr of such an optimizer so low that it never gets going.

    Args:
        who: what sets the lr.
        optimizer: of any kind.
        highest: gives the highest lr of a param group in the run.
    """
    for group in optimizer.param_groups:
        estimate = estimate_of(group)
        if estimate is None or estimate >= _UNGROWN or (peak := highest(group)) >= _TOO_LOW:
            continue
        log.warning(
            "%s: %s finds its step size d itself, from %g on, and multiplies it by the lr, which "
            "is set to %.2g at most: so low, d may stay where it is and nothing is trained; give "
            "the optimizer lr=1.0, and a schedule that begins or peaks near it",
            who,
            type(optimizer).__name__,
            estimate,
            peak,
        )
        return


def estimate_of(group: Group) -> float | None:
    """The step size that the optimizer has found for a group; None: it does not look for one."""
    found = group.get("d")
    try:
        return None if found is None or isinstance(found, bool) else float(found)
    except (TypeError, ValueError, RuntimeError):
        return None
