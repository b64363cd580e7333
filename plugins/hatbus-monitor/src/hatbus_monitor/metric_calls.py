"""How the functions that a user gives to ``MetricUpdater`` are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from hatbus.errors import JobError, PluginError, did_you_mean

EXTRA: Final = ("losses", "task", "ctx")
"""What a ``metric_update_func`` may ask for by name, besides its first three arguments."""
FILTERED: Final = ("batch", "model_outs", "task")
"""What a ``filter_condition`` may ask for by name."""


def read_filter(function: Any) -> Callable[[Any, Any, Any], Any]:
    """A ``filter_condition`` as ``f(batch, model_outs, task)``.

    Raises:
        JobError: it is no function, or cannot be called so.
    """
    accepted = f"accepted: a function of {', '.join(FILTERED)}, by these names in any order"
    if not callable(function):
        raise JobError(f"metric_updater: filter_condition is {function!r}; {accepted}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function written in C
        return lambda batch, model_outs, _: function(batch, model_outs)
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    asked = [name for name in FILTERED if name in named]
    needed = [p.name for p in parameters if p.default is p.empty and p.name in named]
    strange = next((name for name in needed if name not in FILTERED), None)
    if strange is None:
        return lambda *given: function(
            **{name: one for name, one in zip(FILTERED, given, strict=True) if name in asked}
        )
    if any(needed.index(name) != FILTERED.index(name) for name in asked if name in needed):
        hint = did_you_mean(strange, FILTERED)
        raise JobError(f"metric_updater: filter_condition wants unknown argument {strange!r}{hint}")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        name = getattr(function, "__name__", repr(function))
        raise JobError(
            f"metric_updater: filter_condition {name!r} cannot be called with (batch, "
            f"model_outs): {error}; {accepted}"
        ) from error
    return lambda batch, model_outs, _: function(batch, model_outs)


def wanted_extras(function: Callable[..., Any]) -> tuple[str, ...]:
    """Which of ``EXTRA`` a ``metric_update_func`` asks for.

    Raises:
        PluginError: it is no function, or cannot be called as one.
    """
    accepted = f"accepted: a function of (metrics, batch, model_outs) and any of {', '.join(EXTRA)}"
    if not callable(function):
        raise PluginError(f"metric_updater: metric_update_func={function!r}; {accepted}")
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a function written in C
        return ()
    more = list(parameters)[3:]
    wanted = tuple(name for name in EXTRA if name in more)
    try:
        inspect.signature(function).bind(None, None, None, **dict.fromkeys(wanted))
    except TypeError as error:
        raise PluginError(
            f"metric_updater: metric_update_func {getattr(function, '__name__', function)!r} "
            f"cannot be used: {error}; {accepted}"
        ) from error
    return wanted
