"""Several validations of one run: each at its own interval, all due ones in one ``validate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from hatbus.errors import PluginError

if TYPE_CHECKING:
    from hatbus import Bus
    from hatbus_validation.validation import Validation

FIRST_NAME: Final = "val"


def fellows_of(one: Validation, kind: type[Validation], bus: Bus) -> dict[str, Validation]:
    """The plugins of a kind on a bus by instance name, in the order of the plugins.

    Args:
        one: the one that asks; alone where it is not on the bus itself.
        kind: the class; given, so that this module need not import it.
        bus: where to look.
    """
    found = {place.name: bus.members[place.name].plugin for place in bus.order()}
    mine = {name: plugin for name, plugin in found.items() if isinstance(plugin, kind)}
    return mine if one in mine.values() else {FIRST_NAME: one}


def first_names(fellows: dict[str, Validation]) -> dict[Validation, str]:
    """What the published names of each begin with.

    The first one that was given no name publishes as ``val/...``, the others as
    ``val/<instance name>/...``. One that is off publishes nothing, and takes no name from them.

    Raises:
        PluginError: two were given the same name.
    """
    names: dict[Validation, str] = {}
    owners: dict[str, str] = {}
    for instance, one in fellows.items():
        is_first = one.name is None and FIRST_NAME not in owners
        name = one.name or (FIRST_NAME if is_first else f"{FIRST_NAME}/{instance}")
        names[one] = name
        if one.is_off:
            continue
        if name in owners:
            raise PluginError(
                f"validation: plugins {owners[name]!r} and {instance!r} both publish "
                f"'{name}/...'; give one of them a name of its own: name = {instance!r}"
            )
        owners[name] = instance
    return names


@contextmanager
def asking(chosen: Sequence[Validation]) -> Iterator[None]:
    """Inside, ``validate`` is for the chosen ones; when somebody else asks, it is for all."""
    for one in chosen:
        one.is_asked = True
    try:
        yield
    finally:
        for one in chosen:
            one.is_asked = False
