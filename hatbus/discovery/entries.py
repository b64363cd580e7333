"""The entry points of a group, whatever is wrong with some distribution that has others."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from hatbus.log import log

if TYPE_CHECKING:
    from collections.abc import Iterator


def entries_of(group: str) -> list[metadata.EntryPoint]:
    """The entry points of a group, those of a distribution that shadows another's included.

    Python reads those of all distributions at once, and fails when one of them cannot be read; then
    each is read by itself, and what cannot be read is named in a warning.
    """
    try:
        return list(metadata.entry_points(group=group))
    except Exception:  # noqa: BLE001 - a file of another package's may hold anything
        return list(_one_by_one(group))


def _one_by_one(group: str) -> Iterator[metadata.EntryPoint]:
    seen: set[str] = set()
    for distribution in metadata.distributions():
        place = getattr(distribution, "_path", "an unknown place")
        try:
            name = str(distribution.metadata["Name"]).lower().replace("_", "-").replace(".", "-")
            found = distribution.entry_points.select(group=group)
        except Exception as error:  # noqa: BLE001 - as above
            log.warning(
                "the entry points in '%s' cannot be read (%s: %s), so its plugins are not known; "
                "repair or uninstall that distribution",
                place,
                type(error).__name__,
                error,
            )
            continue
        if name not in seen:  # a second one of a name is shadowed by the first on the path
            yield from found
        seen.add(name)
