"""Names in ``before`` and ``after`` that no plugin has, which order nothing.

One of a plugin that is merely absent is meant to be passed over; one that is nowhere known is
likely misspelt, and worth a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hatbus import discovery
from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.errors import did_you_mean
from hatbus.events.declare import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SIDES: Final = ("before", "after")


def strangers(place: Mapping[str, Any], beside: Iterable[str]) -> Iterator[str]:
    """What a place in the order says about names that are nowhere known, in words.

    Args:
        place: ``before`` and ``after`` as declared or written; other keys are passed over.
        beside: names that are known besides those of installed and of hatbus's own plugins.
    """
    known = {*beside, *FIRST_PARTY, *(found.name for found in discovery.installed())}
    for side in _SIDES:
        value = place.get(side)
        for word in names(value) if isinstance(value, (str, list, tuple)) else ():
            if word not in known:
                yield f"says {side} {word!r}, which names no plugin{_hint(str(word), known)}"


def _hint(word: str, known: set[str]) -> str:
    close = did_you_mean(word, known)
    return close if "did you mean" in close else "; `hatbus plugins` lists what is installed"
