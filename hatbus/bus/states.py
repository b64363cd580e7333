"""The saved states of plugins: whose run they are of, their versions, giving them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from hatbus.bus.blame import blame_state
from hatbus.bus.member import CORE
from hatbus.errors import CheckpointError, HatbusError, PluginError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hatbus.bus.member import Member

_seen_by: Final[WeakKeyDictionary[object, States]] = WeakKeyDictionary()
"""Plugin that keeps a state to the states of the bus in whose run it was."""


class States:
    """What the plugins of one bus keep in checkpoints."""

    def check(self, members: Iterable[Member]) -> None:
        """Refuses a plugin that keeps what it saw in another run, unless its state was loaded here.

        Raises:
            PluginError: which, and what to do.
        """
        for name, plugin in _stateful(members).items():
            if _seen_by.get(plugin, self) is not self:
                raise PluginError(
                    f"plugin {name!r} keeps what it saw in a run of another trainer; "
                    "give each trainer an instance of its own"
                )

    def keep(self, members: Iterable[Member]) -> None:
        """Notes that the plugins keep something of a run of this bus."""
        _seen_by.update(dict.fromkeys(_stateful(members).values(), self))

    def load(
        self, members: Sequence[Member], state: Mapping[str, Any], versions: Mapping[str, int]
    ) -> None:
        """Gives every plugin its state back; see ``Bus.load_state_dict``.

        Args:
            members: in order.
            state: plugin name to state.
            versions: plugin name to the version that its state was saved with.

        Raises:
            CheckpointError: a state has no taker, is of a version that its plugin cannot read, or
                the plugin failed to take it.
        """
        takers = {m.name for m in members if hasattr(m.plugin, "load_state_dict")}
        state = {n: s for n, s in state.items() if n in takers or not n.startswith(CORE)}
        for name in state:
            if name not in takers:
                raise CheckpointError(
                    f"there is saved state of plugin {name!r}, which is not in this run or takes "
                    f"none; add the plugin, or leave its state out: {how_to_drop(name)}"
                )
        for member in members:
            if member.name in state:
                saved = versions.get(member.name, 1)
                give_state(member.name, member.plugin, state[member.name], saved)
        loaded = {n: p for n, p in _stateful(members).items() if n in state}
        _seen_by.update(dict.fromkeys(loaded.values(), self))  # the rest is gone


def collected(members: Sequence[Member]) -> dict[str, Any]:
    """The state of every plugin that has one, by instance name.

    Args:
        members: in order.
    """
    found: dict[str, Any] = {}
    for member in members:
        if (get := getattr(member.plugin, "state_dict", None)) is not None:
            try:
                found[member.name] = get()
            except BaseException as error:
                blame_state(error, member.name, member.plugin)
                raise
    return found


def _stateful(members: Iterable[Member]) -> dict[str, object]:
    """The plugins that keep something in checkpoints; not those that nobody can remember."""
    return {
        m.name: m.plugin
        for m in members
        if not m.core and hasattr(m.plugin, "state_dict") and hasattr(m.plugin, "__weakref__")
    }


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
