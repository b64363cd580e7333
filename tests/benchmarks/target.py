"""How a benchmark declares a target: ``check_target(what, measured, at_most)`` prints a line.

``targets.py`` runs the benchmarks that declare some, and gathers the lines.
"""

from __future__ import annotations

import re

LINE = re.compile(
    r"^target: (?P<what>.+): (?P<measured>\S+) \(at most (?P<at_most>\S+)\) (?P<met>\w+)$"
)


def check_target(what: str, measured: float, at_most: float) -> bool:
    """Prints a target against what was measured; returns whether it is met.

    Args:
        what: is measured, as a ratio mostly, in one line.
        measured: the figure.
        at_most: what it may be.
    """
    is_met = measured <= at_most
    print(f"target: {what}: {measured:.3f} (at most {at_most:g}) {'met' if is_met else 'MISSED'}")
    return is_met
