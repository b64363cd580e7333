"""Objects from configs: ``dict(type="CosLrUpdater", warmup_len=100)``, nested as deep as one likes.

``type`` is a class or function, the name of an installed plugin (its class or entry point), a name
that a distribution offers in the entry-point group ``hatbus.types``, a name of ``torch.optim``,
``torch.nn`` or ``torch.utils.data``, or a dotted path (``"package.module.Class"``). The rest are
its arguments. Source: ``hat``'s registry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

from hatbus.discovery.entries import entries_of
from hatbus.discovery.entry_points import hint, installed
from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.errors import HatbusError, PluginError, did_you_mean
from hatbus.events.callback_mixin import CallbackMixin
from hatbus.events.declare import DECLARATION, OVERRIDABLE, PROJECT, declaration_of

TYPES: Final = "hatbus.types"
"""Entry-point group of the names that ``type`` may have besides those of plugins."""
ADAPTERS: Final = "hatbus.adapters"
"""Entry-point group of what makes plugins of other libraries' callbacks: the dotted name of a class
of theirs, and a function from a subclass of it to a plugin class."""
TORCH: Final = ("torch.optim", "torch.nn", "torch.utils.data")
"""Modules whose public names ``type`` may have."""
ACCEPTED: Final = (
    "a class, the name of a plugin's class or of a part of torch, 'package.module.Class'"
)
_KINDS: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_FLAT: Final = "__build_recursive"
"""HAT's key: False leaves the configs inside as they are."""


def is_config(value: Any) -> bool:
    """Whether a value is a mapping with a ``type``."""
    return isinstance(value, Mapping) and isinstance(value.get("type"), (str, type, Callable))  # type: ignore[arg-type]  # a Callable is a class to isinstance


def build(config: Any, where: str = "", known: Mapping[str, Any] | None = None) -> Any:
    """The object that a config describes; configs among its arguments are built first.

    Lists, tuples and mappings are looked through. What holds no config is given back as it is. A
    config that stands in several places is built once, so both get the same object.

    Args:
        config: ``dict(type=..., ...)``, or a list or mapping of them; anything else is the result.
        where: it stands, for messages, such as ``"validation: callbacks"``.
        known: names that ``type`` may have here, before all others.

    A class may bring names for the configs among its own options: a mapping ``config_types``.

    Returns:
        The object. A plugin's filters (``tasks``, ``every``, ...) become its declaration.

    Raises:
        HatbusError: a name or argument that does not exist, or an argument that is missing.
    """
    return Builder(where, known).build(config)


class Builder:
    """Builds configs, each once: what stands in several places is one object.

    Args:
        where: the configs stand, for messages.
        known: names that ``type`` may have, before all others.
    """

    def __init__(self, where: str = "", known: Mapping[str, Any] | None = None) -> None:
        self._where = where
        self._known = known or {}
        self._built: dict[int, tuple[Any, Any]] = {}

    def build(self, value: Any) -> Any:
        """The value, with objects in the place of configs; see ``build``."""
        if is_config(value):
            if id(value) not in self._built:
                self._built[id(value)] = (value, self._object(value))  # held, so its id stays its
            return self._built[id(value)][1]
        if isinstance(value, Mapping):
            made = {key: self.build(one) for key, one in value.items()}
            return made if any(made[key] is not one for key, one in value.items()) else value
        if type(value) in (list, tuple):
            items = [self.build(one) for one in value]
            is_same = all(new is old for new, old in zip(items, value, strict=True))
            return value if is_same else type(value)(items)
        return value

    def find(self, kind: Any) -> Any:
        """The class or function that ``type`` names.

        Raises:
            PluginError: there is none.
        """
        if not isinstance(kind, str):
            return kind
        for search in (self._known.get, _plugin, _offered, _of_torch, _dotted):
            found = search(kind)
            if found is not None:
                return found
        missing = {own.class_name: entry for entry, own in FIRST_PARTY.items()}
        if kind in FIRST_PARTY or kind in missing:
            raise PluginError(f"{self._start}unknown type {kind!r}{hint(missing.get(kind, kind))}")
        closest = did_you_mean(kind, _names(self._known))
        advice = closest if "did you mean" in closest else f"; accepted: {ACCEPTED}"
        raise PluginError(f"{self._start}unknown type {kind!r}{advice}")

    @property
    def _start(self) -> str:
        return f"{self._where}: " if self._where else ""

    def _object(self, config: Mapping[str, Any]) -> Any:
        options = dict(config)
        maker = self.find(options.pop("type"))
        filters = {}
        if is_plugin_class(maker):
            filters = {key: options.pop(key) for key in OVERRIDABLE if key in options}
        self.check(maker, options)
        if options.pop(_FLAT, True):
            inner = self._inside(maker)
            options = {key: inner.build(one) for key, one in options.items()}
        try:
            made = maker(**options)
        except HatbusError:
            raise
        except Exception as error:
            name = getattr(maker, "__name__", repr(maker))
            error.add_note(f"while {self._start}dict(type={name!r}, ...) was built")
            raise
        if filters:
            setattr(made, DECLARATION, declaration_of(made, filters))
        return made

    def _inside(self, maker: Any) -> Builder:
        """For the options of a class, which may know more names: its ``config_types``."""
        known = getattr(maker, "config_types", None)
        if not isinstance(known, Mapping):
            return self
        inner = Builder(self._where, {**self._known, **known})
        inner._built = self._built
        return inner

    def check(self, maker: Any, options: Mapping[str, Any]) -> None:
        """Refuses arguments that a class or function does not have, and missing ones.

        Raises:
            PluginError: there are some.
        """
        try:
            parameters = inspect.signature(maker).parameters
        except (TypeError, ValueError):  # written in C
            return
        name = getattr(maker, "__name__", repr(maker))
        takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        named = [p.name for p in parameters.values() if p.kind in _KINDS]
        for key in options:
            if key not in named and key != _FLAT and not takes_more:
                closest = did_you_mean(str(key), named) or "; it takes none"
                raise PluginError(f"{self._start}{name}: unknown option {key!r}{closest}")
        for key in named:
            if parameters[key].default is inspect.Parameter.empty and key not in options:
                raise PluginError(f"{self._start}{name}: missing option {key!r}")


def is_plugin_class(maker: Any) -> bool:
    """Whether a class is one of plugins: of HAT's form, or with a marked method."""
    if not isinstance(maker, type):
        return False
    marked = (getattr(maker, name, None) for name in dir(maker) if not name.startswith("__"))
    return issubclass(maker, CallbackMixin) or any(
        hasattr(method, f"{PROJECT}_impl") for method in marked
    )


def adapted(cls: type[Any]) -> type[Any]:
    """The plugin class that stands for another library's class of callbacks; any other as it is.

    Raises:
        PluginError: what an installed distribution offers for it cannot be loaded.
    """
    if is_plugin_class(cls):
        return cls
    offered = {entry.name: entry for entry in entries_of(ADAPTERS)}
    for base in cls.__mro__:
        entry = offered.get(f"{base.__module__}.{base.__qualname__}")
        if entry is not None:
            try:
                make: Callable[[type[Any]], type[Any]] = entry.load()
            except Exception as error:
                raise PluginError(
                    f"what makes a plugin of a {entry.name} cannot be loaded from "
                    f"{entry.value!r}: {type(error).__name__}: {error}"
                ) from error
            return make(cls)
    return cls


def _plugin(name: str) -> Any:
    """The class of an installed plugin, by the name of its entry point or its own."""
    offers = [found for found in installed() if name in (found.name, found.attr)]
    values = {found.value for found in offers}
    if len(values) > 1:
        both = " and ".join(f"{found.name!r} of {found.source}" for found in offers)
        raise PluginError(f"{name!r} is offered as {both}; give type the class itself")
    return offers[0].load() if offers else None


def _offered(name: str) -> Any:
    """What a distribution offers under this name.

    Raises:
        PluginError: two do, or it cannot be imported.
    """
    offers = [entry for entry in entries_of(TYPES) if entry.name == name]
    if len({entry.value for entry in offers}) > 1:
        both = " and ".join(entry.value for entry in offers)
        raise PluginError(f"{name!r} is offered as {both}; give type the class itself")
    if not offers:
        return None
    try:
        return offers[0].load()
    except Exception as error:
        raise PluginError(
            f"type {name!r} cannot be loaded from {offers[0].value!r}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _of_torch(name: str) -> Any:
    for module in TORCH:
        found = getattr(import_module(module), name, None)
        if isinstance(found, type):
            return found
    return None


def _dotted(path: str) -> Any:
    """What a dotted path names (a colon before the last part is as good as a dot).

    Raises:
        PluginError: no such module or attribute. An error of the module itself goes on.
    """
    home, _, attribute = path.replace(":", ".").rpartition(".")
    if not home:
        return None
    try:
        module = import_module(home)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{home}.".startswith(f"{error.name}."):
            raise
        raise PluginError(f"type {path!r}: no module {error.name!r}") from error
    if not hasattr(module, attribute):
        public = [word for word in vars(module) if not word.startswith("_")]
        closest = did_you_mean(attribute, public)
        advice = closest if "did you mean" in closest else ""
        raise PluginError(f"type {path!r}: {home} has no {attribute!r}{advice}")
    return getattr(module, attribute)


def _names(known: Mapping[str, Any]) -> set[str]:
    """Every name that ``type`` may have, for did-you-mean."""
    names = {*known, *(entry.name for entry in entries_of(TYPES))}
    names |= {word for found in installed() for word in (found.name, found.attr)}
    names |= {word for entry, own in FIRST_PARTY.items() for word in (entry, own.class_name)}
    for module in map(import_module, TORCH):
        names |= {word for word, thing in vars(module).items() if isinstance(thing, type)}
    return names
