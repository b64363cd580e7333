"""The bus: the plugins of one run, their registration, their order, and the frozen events.

One pluggy ``PluginManager`` holds the implementations; ``hatbus.bus.dispatch`` turns them into one
callable per event and task. Registering or unregistering freezes everything anew, in place, so
that a loop which is under way sees the change at its next event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import pluggy

from hatbus.bus.dispatch import Gate, Rules, freeze
from hatbus.bus.intervals import Interval, Intervals
from hatbus.bus.member import CORE, Member, is_core
from hatbus.bus.moments import without_idle
from hatbus.bus.order import Place, Placed, in_turn, resolve
from hatbus.bus.registration import PLUGINS, admit, default_name, options_of
from hatbus.bus.rules import check_claims, check_replacements
from hatbus.bus.states import States, collected, rank_part
from hatbus.discovery.configs import Builder, is_config
from hatbus.errors import PluginError, did_you_mean
from hatbus.events import on_demand, training
from hatbus.events.declare import PROJECT, declaration_of
from hatbus.events.instance_names import check_name
from hatbus.events.training import DECISION, EVENTS, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

INTERVALS: Final = f"{CORE}intervals"


class Emitter:
    """One callable per event, or None where nobody listens; see ``hatbus.events``."""

    __slots__ = tuple(EVENTS)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _Manager(pluggy.PluginManager):
    """pluggy's manager, which also takes the unmarked methods of a ``CallbackMixin`` class."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        if name.startswith("__"):  # most names of an object; pluggy looks long at each
            return None
        return options_of(plugin, name) or super().parse_hookimpl_opts(plugin, name)


class Bus:
    """The plugins of one run.

    Args:
        plugins: instances, or ``{instance name: instance}``.
        rank: of this process; plugins with ``ranks="zero"`` are silent elsewhere.
        strict: refuse results of moments (they are ignored otherwise).

    Attributes:
        members: registered plugins by name, in no order.
        rank: of this process; ``freeze`` anew where it is set later.
        callers: frozen function's filename to plugin name per line.
        asks_batches: whether any plugin decides on ``skip_batch``.
        instrument: gives the function to call in place of a plugin's
            (``hatbus.insight.Profile``); set it before the first event.
        scopes: task (None: no task) to its frozen events.
        gates: name to gate, of the plugins with an interval.
        freezes: how often the events were frozen, for whoever keeps something of that.
    """

    def __init__(
        self,
        plugins: Sequence[object] | Mapping[str, object] = (),
        *,
        rank: int = 0,
        strict: bool = False,
    ) -> None:
        self.rank = rank
        self.members: dict[str, Member] = {}
        self.callers: dict[str, tuple[str, ...]] = {}
        self.gates: dict[str, Gate] = {}
        self._strict: Final = strict
        self.scopes: dict[str | None, Emitter] = {None: Emitter()}
        self._intervals: list[Interval] = []
        self._tasks: list[str] | None = None
        self._states: Final = States()
        self._positions = 0
        self._prefixes: dict[int, str] = {}
        self._order: list[str] = []
        self._manager = _new_manager()
        self._is_frozen, self.freezes = False, 0
        self.asks_batches = False
        self.instrument: Callable[..., Any] | None = None
        for name, instance in named_instances(plugins):
            self.register(instance, name)

    def register(
        self,
        plugin: object,
        name: str | None = None,
        *,
        overrides: dict[str, Any] | None = None,
        core: bool = False,
        outermost: bool = False,
    ) -> str:
        """Adds a plugin.

        Args:
            plugin: an object with hookimpls.
            name: its instance name; its entry point's name when None.
            overrides: stage, before, after, tasks, every, ranks from the job.
            core: part of hatbus itself: its wrappers go around those of plugins, its calls come
                before and its defaults behind theirs.
            outermost: for a part of hatbus whose wrappers go around all others.

        Returns:
            The name it is registered under.

        Raises:
            PluginError: it cannot be a plugin; the message says why and what to do.
        """
        kind = "" if core else default_name(plugin)
        name = (kind or default_name(plugin)) if name is None else name
        if name.startswith(CORE) and not core:
            raise PluginError(
                f"plugin name {name!r} begins with 'core.', as hatbus's own; rename it"
            )
        if not core:
            check_name(name, self.members, kind)
        if name in self.members:
            raise PluginError(
                f"two plugins named {name!r}; give them names of their own: "
                f"plugins={{'first': ..., 'second': ...}}, or [plugins.second] use = {name!r}"
            )
        same = [m.name for m in self.members.values() if m.plugin is plugin]
        if same:
            raise PluginError(f"plugin {name!r} is the object registered as {same[0]!r} already")
        admit(plugin, name)
        try:
            declared = declaration_of(plugin, overrides)
        except PluginError as error:
            raise PluginError(f"plugin {name!r}: {error}") from None
        interval = Interval.parse(declared.every, name) if declared.every else None
        member = Member(name, plugin, declared, self._positions, core, interval, kind)
        self._check_tasks(member)
        if interval is not None:
            self._watch(interval)
        self.members = (
            {name: member, **self.members} if outermost else {**self.members, name: member}
        )
        self._positions += not core
        try:
            self._changed()
        except PluginError:
            self.unregister(name)  # else the next plugin would be refused for this one's fault
            raise
        return name

    def unregister(self, name: str) -> object:
        """Takes a plugin off the bus and returns it.

        Raises:
            PluginError: there is none of that name.
        """
        if name not in self.members:
            raise PluginError(f"no plugin {name!r} here{did_you_mean(name, self.members)}")
        member = self.members.pop(name)
        if member.interval is not None:
            self._intervals.remove(member.interval)
        self._changed()
        return member.plugin

    # ---- freezing -----------------------------------------------------------------------------

    def emitter(self, task: str | None = None) -> Emitter:
        """The frozen events in the scope of a task.

        Args:
            task: one of ``set_tasks``; None: outside of any.
        """
        if not self._is_frozen:
            self.freeze()
        return self.scopes[task]

    def set_tasks(self, tasks: Iterable[str]) -> None:
        """Says which tasks the run has; each gets callers of its own.

        Raises:
            PluginError: a plugin is bound to a task that the run does not have.
        """
        self._tasks = list(tasks)
        for member in self.members.values():
            self._check_tasks(member)
        scopes = [None, *self._tasks]
        if list(self.scopes) != scopes:  # else everything is frozen as it has to be
            self.scopes = {task: self.scopes.get(task, Emitter()) for task in scopes}
            self._changed()

    def freeze(self) -> None:
        """Puts the plugins in order and writes one callable per event and task."""
        check_claims(self.members.values())
        self._order = [placed.name for placed in self.order()]
        self._manager = _new_manager()
        core = [m for m in self.members.values() if m.core]
        for name in reversed([*(m.name for m in core), *self._order]):
            self._manager.register(self.members[name].plugin, name)
        check_replacements(self.members, self._manager.hook)
        self.gates = {m.name: m.interval.gate for m in self.members.values() if m.interval}
        shared = self.scopes[None]
        for event in EVENTS.values():
            for task, emitter in self.scopes.items():
                if event.per_task or task is None:
                    setattr(emitter, event.name, self._freeze(event, task))
                else:
                    setattr(emitter, event.name, getattr(shared, event.name))
        self.asks_batches = any(e.skip_batch is not None for e in self.scopes.values())
        self._is_frozen, self.freezes = True, self.freezes + 1

    def order(self) -> list[Placed]:
        """The plugins (not hatbus's own) in order, each with the reasons for its place."""
        mine = [m for m in self.members.values() if not m.core]
        return resolve([Place(m.name, m.declared, m.position, m.kind) for m in mine])

    def log_prefix(self, plugin: object) -> str:
        """What a plugin puts before the names that it publishes: "", or ``"<instance name>/"``.

        The first instance of a plugin, in order, publishes under plain names; further ones would
        overwrite its values, so theirs begin with their instance names.

        Raises:
            PluginError: it is not on this bus.
        """
        if id(plugin) not in self._prefixes:
            mine = next((m for m in self.members.values() if m.plugin is plugin), None)
            if mine is None:
                raise PluginError(f"{plugin!r:.80} is no plugin on this bus; register it first")
            kin = [p.name for p in self.order() if self.members[p.name].kind == mine.kind]
            self._prefixes[id(plugin)] = "" if mine.name in kin[:1] else f"{mine.name}/"
        return self._prefixes[id(plugin)]

    def implementations(self, event: str, task: str | None = None) -> list[pluggy.HookImpl]:
        """The implementations of an event in the order they run, outermost wrapper first."""
        if not self._is_frozen:
            self.freeze()
        return self._in_turn(EVENTS[event], task)

    def _watch(self, interval: Interval) -> None:
        """Adds the wrapper that sets the gates, outermost, once a plugin has an interval."""
        if INTERVALS not in self.members:
            self.register(Intervals(self._intervals), INTERVALS, core=True, outermost=True)
        self._intervals.append(interval)

    def _changed(self) -> None:
        self._prefixes.clear()
        if self._is_frozen:
            self.freeze()

    def _freeze(self, event: Event, task: str | None) -> Any:
        if event.kind == DECISION and not self._is_decided(event, task):
            return None
        listened = without_idle(self._in_turn(event, task), self._manager.hook)
        gates = {name: g for name, g in self.gates.items() if self._gate_applies(name, event)}
        return freeze(
            event, listened[::-1], Rules(gates, self._strict, self.callers, self.instrument)
        )

    def _is_decided(self, event: Event, task: str | None) -> bool:
        """Whether any plugin has a say in a decision, on whatever rank: all ranks ask, or none."""
        impls = self._in_turn(event, task, rank=0)
        return not all(impl.wrapper and is_core(impl.plugin_name) for impl in impls)

    def _in_turn(
        self, event: Event, task: str | None, rank: int | None = None
    ) -> list[pluggy.HookImpl]:
        """The implementations of an event, first to run first, but those silent here or on rank."""
        rank = self.rank if rank is None else rank
        silent = [
            m.plugin
            for m in self.members.values()
            if (m.declared.ranks == "zero" and rank != 0)
            or (event.per_task and m.declared.tasks and task not in m.declared.tasks)
        ]
        caller = self._manager.subset_hook_caller(event.name, silent)
        return in_turn(event, reversed(caller.get_hookimpls()), self._order)

    def _gate_applies(self, name: str, event: Event) -> bool:
        interval = self.members[name].interval
        return interval is not None and interval.applies_to(event)

    def _check_tasks(self, member: Member) -> None:
        """Refuses a binding to a task that the run does not have, once its tasks are known."""
        known = self._tasks
        if known is None:
            return
        for task in member.declared.tasks:
            if task not in known:
                raise PluginError(
                    f"plugin {member.name!r} is bound to task {task!r}, which the run does not "
                    f"have{did_you_mean(task, known) or '; it has no tasks'}"
                )

    # ---- state --------------------------------------------------------------------------------

    def check_states(self) -> None:
        """Refuses a plugin that keeps what it saw in another run, unless its state was loaded here.

        Raises:
            PluginError: which, and what to do.
        """
        self._states.check(self.members.values())

    def keep_states(self) -> None:
        """Notes that the plugins keep something of a run of this bus."""
        self._states.keep(self.members.values())

    def state_dict(self) -> dict[str, Any]:
        """The state of every plugin that has one, by instance name."""
        return collected(self._in_order())

    def rank_parts(self, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What in the plugins' state is each process's own, by instance name.

        Args:
            state: as ``state_dict`` gives it.
        """
        plugins = {name: self.members[name].plugin for name in state if name in self.members}
        parts = {name: rank_part(plugin, state[name]) for name, plugin in plugins.items()}
        return {name: part for name, part in parts.items() if part}

    def load_state_dict(
        self, state: Mapping[str, Any], versions: Mapping[str, int] | None = None
    ) -> None:
        """Gives every plugin its state back, in order; plugins without a saved one keep theirs.

        The state of a part of hatbus that this run does without is left out.

        Args:
            state: plugin name to state.
            versions: plugin name to the ``state_version`` that its state was saved with; 1 where
                none is named. A plugin with another version now is asked to
                ``migrate_state(state, version)``.

        Raises:
            CheckpointError: a state has no taker, is of a version that its plugin cannot read, or
                the plugin failed to take it.
        """
        self._states.load(self._in_order(), state, versions or {})

    def _in_order(self) -> list[Member]:
        core = [m for m in self.members.values() if m.core]
        return [*core, *(self.members[p.name] for p in self.order())]


def named_instances(
    plugins: Sequence[object] | Mapping[str, object],
) -> Iterable[tuple[str | None, object]]:
    """``(name or None, instance)`` of a list of plugins or of a mapping from names.

    Configs, ``dict(type=..., ...)``, are built. The second of a kind in a list is ``name_2``.

    Raises:
        PluginError: something else was given.
    """
    if is_config(plugins):
        plugins = [plugins]
    if isinstance(plugins, Mapping):
        builder = Builder("plugins")
        return [(name, builder.build(one)) for name, one in plugins.items()]
    if isinstance(plugins, (str, bytes)) or not hasattr(plugins, "__iter__"):
        raise PluginError(f"plugins is {plugins!r:.80}; accepted: {PLUGINS}")
    builder = Builder("plugins")
    return unlike_names([builder.build(one) if is_config(one) else one for one in plugins])


def unlike_names(plugins: Iterable[object]) -> list[tuple[str | None, object]]:
    """Every plugin with a name, where its own is taken by one before it; else None."""
    counts: Counter[str] = Counter()
    found: list[tuple[str | None, object]] = []
    for one in plugins:
        own = default_name(one)
        counts[own] += 1
        found.append((f"{own}_{counts[own]}" if counts[own] > 1 else None, one))
    return found


def _new_manager() -> _Manager:
    manager = _Manager(PROJECT)
    manager.add_hookspecs(training)
    manager.add_hookspecs(on_demand)
    return manager
