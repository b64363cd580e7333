"""The logger of hatbus: ``log.info(...)`` of core and plugins goes to the terminal and run.log."""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["log"]

log: Final = logging.getLogger("hatbus")
"""The logger: ``log.info("saved %s", path)``, ``log.warning(...)``."""
