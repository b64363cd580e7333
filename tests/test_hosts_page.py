"""The page of hosts, the file of what was measured, and what the hosts say are the same."""

from __future__ import annotations

import json

from hosts_table import with_hosts
from pages import DOCS, all_blocks

from hatbus_hosts.capabilities import TABLES
from hatbus_hosts.needs import rows


def test_the_page_shows_what_was_measured() -> None:
    page = (DOCS / "hosts.md").read_text("utf-8")
    assert with_hosts(page) == page, "run `python docs/refresh.py`"


def test_every_cell_was_measured_and_says_what_the_host_says() -> None:
    """``HATBUS_HOSTS_REFRESH=1 tox -e hosts`` measures anew."""
    cells = json.loads((DOCS / "hosts.json").read_text("utf-8"))["cells"]
    new = [row for row in rows() if row not in cells]
    assert [(row, h) for row in new for h, table in TABLES.items() if table[row]] == []
    for row, measured in cells.items():
        for host, table in TABLES.items():
            said = table[row]
            expected = f"partly: {said}" if isinstance(said, str) else ("yes" if said else "no")
            assert measured[host] == expected, (host, row)


def test_a_page_about_hosts_has_a_short_example_for_each() -> None:
    python = [b.text for b in all_blocks(DOCS / "hosts.md") if b.language == "python"]
    names = ("LightningHost(", "TransformersHost(", "attach_ignite(", "AccelerateHost(")
    assert [sum(name in text for text in python) for name in names] == [1, 1, 1, 1]
