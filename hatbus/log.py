"""The logger of hatbus: ``log.info(...)`` of core and plugins goes to the terminal and run.log."""

from __future__ import annotations

import logging
from typing import Final

log: Final = logging.getLogger("hatbus")
