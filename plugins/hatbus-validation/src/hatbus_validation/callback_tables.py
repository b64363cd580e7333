"""What may stand in ``callbacks``: plugins, names of installed plugins, and tables of a job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from hatbus.bus import default_name
from hatbus.discovery import build, is_config
from hatbus.errors import JobError, PluginError
from hatbus.events import declaration_of
from hatbus_validation.mean_losses import MeanLosses

ACCEPTED: Final = (
    "accepted: a plugin, the name of an installed one, or a table such as "
    "{ use = 'metric_updater', metrics = ['accuracy'] }"
)


class Named(NamedTuple):
    """One callback: its name inside the validation, the instance, and its filters."""

    name: str
    callback: object
    overrides: dict[str, Any]


def named_callbacks(given: Iterable[Any]) -> list[Named]:
    """The callbacks, each under a name of its own.

    Args:
        given: plugins; names of installed plugins; tables with ``use`` (or, as in HAT, ``type``
            with a class or its name), filters (``tasks``, ``every``, ...) and constructor options.

    Raises:
        PluginError: something that is none of these.
    """
    found: list[Named] = []
    for one in given:
        callback, overrides, name = _built(one)
        taken = {other.name for other in found}
        free = (f"{name}_{n}" if n > 1 else name for n in range(1, len(taken) + 2))
        found.append(Named(next(n for n in free if n not in taken), callback, overrides))
    return found


def without_writers(callbacks: Iterable[Named]) -> list[Named]:
    """The callbacks but those of stage ``report``, which write a run's files and boards."""
    placed = ((one, declaration_of(one.callback, one.overrides)) for one in callbacks)
    return [one for one, declared in placed if declared.stage != "report"]


def _built(given: Any) -> tuple[object, dict[str, Any], str]:
    """Instance, filters and wished name."""
    if isinstance(given, str):
        given = {"use": given}
    if not isinstance(given, Mapping):
        return given, {}, default_name(given)
    table = dict(given)
    what = table.pop("use", None) or table.pop("type", None)
    if not isinstance(what, (str, type)):
        raise PluginError(f"validation: callbacks: {given!r} names no plugin in 'use'; {ACCEPTED}")
    made = build({"type": what, **table}, "validation: callbacks")
    return made, {}, default_name(made)


def per_loader(callbacks: Sequence[Any] | None, *, share: bool) -> list[list[Named]]:
    """One list of callbacks for all loaders, or one for each; the mean losses when None.

    Raises:
        JobError: no list.
        PluginError: ``share_callbacks=False`` without a list of lists.
    """
    if is_config(callbacks):  # a list of one, its brackets forgotten
        callbacks = [callbacks]
    if isinstance(callbacks, (str, Mapping)) or not isinstance(callbacks, (Iterable, type(None))):
        raise JobError(f"validation: callbacks is {callbacks!r:.80}; accepted: a list of plugins")
    if callbacks is None:
        callbacks, share = [MeanLosses()], True
    if share:
        return [named_callbacks(callbacks)]
    if not all(isinstance(one, (list, tuple)) for one in callbacks):
        raise PluginError(
            "validation: share_callbacks=False wants a list of callbacks per loader: "
            "callbacks=[[...], [...]]"
        )
    return [named_callbacks(one) for one in callbacks]
