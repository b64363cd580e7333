"""Plugins that fail on purpose, to see what others do then."""

from __future__ import annotations

from typing import Any

from hatbus import hookimpl, plugin
from hatbus.errors import PluginError, did_you_mean
from hatbus.events import EVENTS, MOMENT


class Failure(Exception):  # noqa: N818 - no error of anybody's; it is meant to happen
    """Raised on purpose."""


def failing(event: str, *, step: int = 0, stage: str = "report") -> Any:
    """A plugin that raises ``Failure`` at a moment.

    Args:
        event: name of the moment.
        step: the first step (``global_step_id``) at which it does.
        stage: its place: ``"setup"`` fails before other plugins, ``"report"`` after them.

    Raises:
        PluginError: there is no such moment.
    """
    moments = [name for name, one in EVENTS.items() if one.kind == MOMENT]
    if event not in moments:
        raise PluginError(f"unknown moment {event!r}{did_you_mean(event, moments)}")

    def implementation(self: object, ctx: Any) -> None:  # noqa: ARG001 - a method
        if ctx.global_step_id >= step:
            raise Failure(f"on purpose, in {event}")

    implementation.__name__ = event
    cls = type("Failing", (), {event: hookimpl(implementation)})
    return plugin(stage=stage)(cls)()
