"""Which versions of the hosts were tested."""

from __future__ import annotations

from importlib import metadata
from typing import Final

from packaging.specifiers import SpecifierSet

from hatbus.log import log

TESTED: Final = {
    "pytorch-lightning": "2.6.6",
    "lightning": "2.6.6",
    "transformers": "5.23.0",
    "pytorch-ignite": "0.5.5",
    "accelerate": "1.15.0",
    "robo-orchard-lab": "0.4.0",
}
"""Distribution to the version that the table of capabilities was made with."""
RANGES: Final = {
    "pytorch-lightning": ">=2.5,<2.7",
    "lightning": ">=2.5,<2.7",
    "transformers": ">=5.20,<6",
    "pytorch-ignite": ">=0.5.2,<0.6",
    "accelerate": ">=1.10,<2",
    "robo-orchard-lab": ">=0.4,<0.5",
}
"""Distribution to the versions that should work; those of the extras in ``pyproject.toml``."""
_told: Final[set[str]] = set()


def check_version(*distributions: str) -> None:
    """Warns, once, of a host whose version is outside the range.

    Args:
        distributions: names that the host is installed under; the first that is there counts.
    """
    for name in distributions:
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        fits = SpecifierSet(RANGES[name]).contains(here, prereleases=True)
        if not fits and name not in _told:
            _told.add(name)
            log.warning(
                "%s %s is outside the range that hatbus-hosts is made for (%s, tested with %s); "
                "what plugins hear may differ from the table in docs/hosts.md",
                name,
                here,
                RANGES[name],
                TESTED[name],
            )
        return
