"""The saved state of one plugin: its version, and giving it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hatbus.errors import CheckpointError, HatbusError


def state_version(plugin: object) -> int:
    """The version of a plugin's state: its attribute ``state_version``, 1 without one."""
    return int(getattr(plugin, "state_version", 1))


def rank_part(plugin: object, state: Any) -> dict[str, Any]:
    """What in a plugin's state is each process's own: the keys in its ``rank_state``."""
    keys = getattr(plugin, "rank_state", ()) if isinstance(state, Mapping) else ()
    return {key: state[key] for key in keys if key in state}


def give_state(name: str, plugin: Any, state: Any, saved: int) -> None:
    """Gives a plugin its state back.

    Args:
        name: of the plugin.
        plugin: the plugin.
        state: from its ``state_dict``.
        saved: the version that the state was saved with.

    Raises:
        CheckpointError: the plugin does not know that version, or failed to take the state.
    """
    try:
        plugin.load_state_dict(migrated(name, plugin, state, saved))
    except HatbusError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"plugin {name!r} cannot take its saved state back: {type(error).__name__}: "
            f"{error!s:.200}; --traceback shows where; to go on without it: {how_to_drop(name)}"
        ) from error


def migrated(name: str, plugin: Any, state: Any, saved: int) -> Any:
    """A state of version ``saved`` as the plugin reads it now.

    Raises:
        CheckpointError: the plugin does not know that version.
    """
    now = state_version(plugin)
    if saved == now:
        return state
    migrate = getattr(plugin, "migrate_state", None)
    if migrate is None:
        raise CheckpointError(
            f"the saved state of plugin {name!r} is of version {saved}, this one reads "
            f"version {now} and cannot migrate; install the version that saved it, or leave its "
            f"state out: {how_to_drop(name)}"
        )
    return migrate(state, saved)


def how_to_drop(name: str) -> str:
    """How to resume without the saved state of a plugin, from the command line and without."""
    return f"--drop-plugin-state {name}, or checkpoint's option drop_plugin_state = [{name!r}]"
