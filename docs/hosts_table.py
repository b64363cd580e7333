"""The table of what each host delivers, out of what `tox -e hosts` measured (``hosts.json``)."""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
_TABLE = re.compile(r"(<!-- table of hosts -->\n).*?(<!-- end of table -->)", re.DOTALL)
_TITLES = {
    "transformers": "Transformers",
    "lightning": "Lightning",
    "ignite": "Ignite",
    "accelerate": "Accelerate",
    "plain": "a plain loop",
}


def with_hosts(page: str) -> str:
    """A page with its table of hosts as it was measured."""
    if "<!-- table of hosts -->" not in page:
        return page
    table = hosts_table(json.loads((DOCS / "hosts.json").read_text("utf-8")))
    return _TABLE.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page)


def hosts_table(measured: dict[str, dict[str, dict[str, str]]]) -> str:
    """The versions, the cells, and each limit as a note."""
    notes: dict[str, int] = {}
    versions = ", ".join(f"{n} {v}" for n, v in measured["versions"].items())  # type: ignore[str-bytes-safe]  # text
    lines = [f"With {versions}.", ""]
    lines += [f"| | {' | '.join(_TITLES.values())} |", "|---" * (len(_TITLES) + 1) + "|"]
    for row, cells in measured["cells"].items():
        shown = [_cell(cells[host], notes) for host in _TITLES]
        lines.append(f"| {_row(row)} | {' | '.join(shown)} |")
    lines += ["", *(f"{number}. {limit}" for limit, number in notes.items())]
    return "\n".join(lines)


def _cell(said: str, notes: dict[str, int]) -> str:
    word, _, limit = said.partition(": ")
    if not limit:
        return word
    return f"partly ({notes.setdefault(limit, len(notes) + 1)})"


def _row(row: str) -> str:
    name, _, kind = row.partition(" ")
    if name in ("request", "state"):
        return row
    return f"`{name}` {kind}".rstrip()
