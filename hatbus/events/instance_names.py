"""Names of plugin instances: what files, folders and ``-o NAME.option=value`` can be named by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from hatbus.errors import PluginError

_LONGEST: Final = 64
_IN_A_FILE: Final = 200
"""Characters of the name of a file of it, in which others than ASCII take nine or more."""
_RESERVED: Final = "run"
ACCEPTED: Final = (
    f"accepted: letters, digits, '_' and '-', at most {_LONGEST}, and not {_RESERVED!r}"
)


def fault_of_name(name: object) -> str:
    """Why an instance cannot have a name; empty if it can."""
    plain = isinstance(name, str) and re.fullmatch(r"[\w-]+", name) is not None
    if plain and name != _RESERVED and len(str(name)) <= _LONGEST:
        return "" if len(quote(str(name), safe="")) <= _IN_A_FILE else f"it is too long; {ACCEPTED}"
    return f"files, folders and -o NAME.option=value are named by it; {ACCEPTED}"


def check_name(name: str, others: Iterable[str], kind: str = "") -> None:
    """Refuses a name that an instance cannot have.

    Args:
        name: the name.
        others: of the other instances.
        kind: of the plugin, whose entry point's name it may be.

    Raises:
        PluginError: why, what is accepted, and what to do.
    """
    fault = fault_of_name(name)
    if fault:
        how = f"; give it another: plugins={{'NAME': ...}}, or [plugins.NAME] use = {name!r:.80}"
        raise PluginError(f"plugin name {name!r:.80}: {fault}{how if name == kind else ''}")
    twin = next((o for o in others if o != name and o.casefold() == name.casefold()), None)
    if twin is not None:
        raise PluginError(
            f"plugins {twin!r} and {name!r}: their names differ by case alone, which some disks do "
            "not tell apart; rename one"
        )
