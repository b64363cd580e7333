"""The first line of a docstring, read from a source as text; to parse every plugin takes long."""

from __future__ import annotations

import re
from typing import Final

_ONE_LINE: Final = r"[^\n\"#]*"
_SEVERAL_LINES: Final = r"\((?:\n[ \t]+[^\n\"#]*)*\n\)[^\n\"#]*"
_DOCSTRING: Final = r"\s+r?\"\"\"([^\"\n]+)"


def quick_summary(source: str, name: str, kind: str = "class") -> str | None:
    """The first line of a docstring, without parsing; None if that is not so simple.

    Args:
        source: of the module.
        name: of a class or function at the top level.
        kind: ``class`` or ``def``.
    """
    head = rf"^{kind} {re.escape(name)}\b(?:{_ONE_LINE}|{_SEVERAL_LINES}):[ \t]*\n"
    found = re.search(head + _DOCSTRING, source, re.MULTILINE)
    return found and found[1].strip()
