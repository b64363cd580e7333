"""``HATBUS_ALLOW``: the distributions whose plugins and commands may run; all where it is empty."""

from __future__ import annotations

import os
from typing import Final

from hatbus.discovery.first_party import normalized

ALLOW: Final = "HATBUS_ALLOW"
"""Environment variable: the distributions whose plugins and commands may run, with commas."""


def names_allowed(distribution: str) -> bool:
    """Whether ``HATBUS_ALLOW`` is empty or names a distribution."""
    listed = {normalized(w.strip()) for w in os.environ.get(ALLOW, "").split(",") if w.strip()}
    return not listed or normalized(distribution) in listed
