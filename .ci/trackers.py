"""The distributions that need a service's client."""

import re
from pathlib import Path

_LIST = Path(__file__).resolve().parent.parent / "requirements-trackers.txt"

TRACKERS = re.findall(r"^-e plugins/(\S+)$", _LIST.read_text("utf-8"), re.MULTILINE)
"""Their folders below `plugins`."""
