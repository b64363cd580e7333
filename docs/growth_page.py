"""The page of how costs grow, from what ``tests/benchmarks/growth.py`` recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
RECORD, PAGE = (DOCS / f"growth.{kind}" for kind in ("json", "md"))
HEAD = """# How costs grow

Written by `python tests/benchmarks/growth.py --record` on {date}; torch {torch}, one thread.
Medians of runs in turn. The exponent is the slope through the logarithms of the larger sizes: 0 for
a cost that stays the same, 1 for one that doubles with the size; beside it what it cannot be below.

| what | by | sizes | takes | exponent | cannot be below |
|---|---|---|---|---|---|
"""


def recorded() -> dict[str, Any]:
    """What the last recorded run found."""
    found: dict[str, Any] = json.loads(RECORD.read_text("utf-8"))
    return found


def write_page(record: Mapping[str, Any]) -> None:
    """Writes the page."""
    PAGE.write_text(growth_page(record), "utf-8")


def growth_page(record: Mapping[str, Any]) -> str:
    """The page.

    Args:
        record: what ``docs/growth.json`` holds.
    """
    return HEAD.format(date=record["date"], torch=record["torch"]) + "".join(
        map(line, record["rows"])
    )


def line(row: Mapping[str, Any]) -> str:
    sizes = ", ".join(size(n) for n in row["sizes"])
    takes = shown(row["seconds"])
    slope = f"{row['exponent']:.2f} | {row['must']}"
    return f"| {row['what']} | {row['per']} | {sizes} | {takes} | {slope} |\n"


def size(number: int) -> str:
    return f"{number:,}" if number < 10**5 else f"1e{len(str(number)) - 1}"


def shown(seconds: Sequence[float]) -> str:
    """All in the unit that fits the longest."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if max(seconds) * factor >= 10 or unit == "us":
            break
    figures = (s * factor for s in seconds)
    said = ", ".join(f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in figures)
    return f"{said} {unit}"
