"""The page of what was tried with other libraries, from what the trials have recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "works-with.json"
HEAD = """# Works with

What `tox -e works-with` tries: a run with a part of another library, killed (SIGKILL) in the middle
of its second epoch and resumed in a new process, beside a run that nobody stopped. Compared are
every step's batch, losses and learning rates, every value that was published, and every file of the
last checkpoint.

- **right**: the same, bit for bit;
- **right, with a limit**: it trains and is resumed; what does not go on exactly is the library's
  own, hatbus says so at the start, and the note names what to use instead;
- **refused**: ended before it can go wrong, in one line that says why.

This page is written from what the trials recorded: {count} pairs, of {libraries} libraries.
"""


def recorded() -> dict[str, dict[str, str]]:
    """What the last recorded trials found: version, verdict and note by pair."""
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text("utf-8"))
    return found


def works_with_page(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The page.

    Args:
        rows: what was found, by ``"kind/library/name"``.
    """
    libraries = {key.split("/")[1] for key in rows}
    text = HEAD.format(count=len(rows), libraries=len(libraries))
    for kind in dict.fromkeys(key.split("/")[0] for key in rows):
        mine = {key: row for key, row in rows.items() if key.split("/")[0] == kind}
        text += f"\n## {kind}\n\n" + table(mine)
    return text


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """One kind's table; what has the same verdict and note shares a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for key, row in rows.items():
        _, library, name = key.split("/", 2)
        said = (f"{library} {row['version']}", row["verdict"], row["note"])
        lines.setdefault(said, []).append(name)
    found = ["| library | what | verdict | |", "|---|---|---|---|"]
    for (library, verdict, note), names in lines.items():
        found.append(f"| {library} | {', '.join(names)} | {verdict} | {note} |")
    return "\n".join(found) + "\n"
