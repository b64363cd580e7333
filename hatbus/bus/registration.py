"""What an object must be to become a plugin, checked when it is registered."""

from __future__ import annotations

import inspect
import re
import warnings
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import PluginError, did_you_mean
from hatbus.events.callback_mixin import CallbackMixin
from hatbus.events.declare import PROJECT
from hatbus.events.foreign_names import FOREIGN_NAMES, meant
from hatbus.events.payload import DEPRECATED
from hatbus.events.training import EVENTS, MOMENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PLUGINS: Final = "a list of instances, as [EMA()], or a mapping from names, as {'ema': EMA()}"
STATE: Final = ("state_dict", "load_state_dict")
"""Methods of a plugin that keeps something in checkpoints: both, or neither."""
_MARK: Final = f"{PROJECT}_impl"
_UNMARKED: Final[dict[str, Any]] = {
    "wrapper": False,
    "hookwrapper": False,
    "optionalhook": False,
    "tryfirst": False,
    "trylast": False,
    "specname": None,
}
_MOMENTS: Final = tuple(name for name, event in EVENTS.items() if event.kind == MOMENT)
_SLIP: Final = 0.9
"""How alike a name and an event's must be; "on_epoch_edn" is, "on_login" and "on_log" are not."""
_warned: Final[set[tuple[str, str]]] = set()
BOTH_TURNS: Final = "says tryfirst and trylast; say one of them"


def admit(plugin: object, name: str) -> None:
    """Checks an object that wants to be a plugin.

    Raises:
        PluginError: what is wrong, where, what is accepted and what to do.
    """
    who = f"plugin {name!r} ({type(plugin).__module__}.{type(plugin).__qualname__})"
    if inspect.isclass(plugin):
        raise PluginError(f"plugin {name!r} is the class {plugin.__name__}; give an instance of it")
    if type(plugin).__module__ == "builtins":
        how = f"plugins takes {PLUGINS}"
        raise PluginError(f"{plugin!r:.80} is no plugin but a {type(plugin).__name__}; {how}")
    _check_identity(plugin, who)
    _check_state(plugin, who)
    unmarked = []
    marked = 0
    methods = list(_methods(plugin))
    if all(options is None for _, options in methods):
        _refuse_part_of_others(plugin, name)
    for method, options in methods:
        if options is None:
            unmarked.append(method)
            _check_unmarked(method, who)
            _check_foreign(plugin, method, who)
            continue
        marked += 1
        _check_method(plugin, method, options, who)
    if not marked:
        is_mixin = isinstance(plugin, CallbackMixin)
        raise PluginError(f"{who} {without_event(unmarked, is_mixin=is_mixin)}")


_GIVE: Final = "wrap it in hatbus_hosts."
_OF_OTHERS: Final = {
    "torch.optim.lr_scheduler": "is a scheduler; give TorchLr in its place, as "
    "TorchLr(lambda optimizer: {name}(optimizer, ...))",
    "torch.optim.optimizer": "is an optimizer; give it as optimizer=",
    "torch.nn.modules.module": "is a module; a loss is given as loss=, a model as model=, a metric "
    "to the plugin MetricUpdater",
    "transformers.trainer_callback": f"is a callback of Transformers; {_GIVE}TransformersCallback",
    "lightning.pytorch.callbacks.callback": f"is a callback of Lightning; {_GIVE}LightningCallback",
    "pytorch_lightning.callbacks.callback": f"is a callback of Lightning; {_GIVE}LightningCallback",
    "robo_orchard_lab.pipeline.hooks.mixin": f"is a hook of RoboOrchardLab; {_GIVE}OrchardHooks",
    "torch.utils.data.dataloader": "is a loader; give it as data=, or to the plugin Validation",
}


def _refuse_part_of_others(plugin: object, name: str) -> None:
    """Says what to do with another library's; by name, so that nothing is imported.

    Raises:
        PluginError: it is such.
    """
    bases = [base.__module__ for base in type(plugin).__mro__]
    for module, what in _OF_OTHERS.items():
        if module in bases:
            said = what.format(name=type(plugin).__name__)
            raise PluginError(f"plugin {name!r} is no plugin: a {type(plugin).__name__} {said}")


def misspelt(method: str) -> str:
    """The event that an unmarked method's name is a slip of; empty if it is a name of its own."""
    if not method.startswith("on") or method in EVENTS or method in FOREIGN_NAMES:
        return ""
    return next(iter(get_close_matches(method, _MOMENTS, n=1, cutoff=_SLIP)), "")


def no_event(event: str) -> str:
    """What to say of an unmarked method whose name is a slip of an event's."""
    return f"is no event; did you mean {event!r}? If not, give it a name less alike"


def foreign_name(method: str) -> str:
    """What to say of a method that is named as another trainer names an event."""
    event = FOREIGN_NAMES[method]
    return f"is no event, and another trainer's name for {event!r}; override that"


def without_event(methods: Iterable[str], *, is_mixin: bool) -> str:
    """What to say of a class of which no method implements an event."""
    if not is_mixin:
        return "implements no event; mark its methods with @hookimpl"
    own = next((name for name in methods if name.startswith("on_")), None)
    if own is None:
        return "implements no event; override a method of CallbackMixin, such as on_step_end"
    return f"implements no event: {own} is none{meant(own, _MOMENTS)}"


def options_of(plugin: object, name: str) -> dict[str, Any] | None:
    """pluggy's options for an unmarked method that implements an event all the same.

    One that overrides a marked method has its mark. In a ``CallbackMixin`` class every moment is
    an implementation, and moments only: what is named like a span or a decision would silently
    take its place.
    """
    own = getattr(type(plugin), name, None)
    if own is None or name not in EVENTS or hasattr(own, _MARK):
        return None
    for cls in type(plugin).__mro__:
        mark = getattr(vars(cls).get(name), _MARK, None)
        if mark is not None:
            return dict(mark)
    is_mixin = isinstance(plugin, CallbackMixin) and EVENTS[name].kind == MOMENT
    return dict(_UNMARKED) if is_mixin and own is not getattr(CallbackMixin, name, None) else None


def default_name(plugin: object) -> str:
    """The entry-point name of the plugin's class, else the class name in snake case."""
    from hatbus.discovery.entry_points import entry_point_name

    cls = plugin if inspect.isclass(plugin) else type(plugin)
    found = entry_point_name(cls)
    return found or in_snake_case(cls.__name__)


def in_snake_case(cls: str) -> str:
    """A class's name as a plugin's: ``EMALike`` is ``ema_like``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls).lower()


def _methods(plugin: object) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Name and options (None: not marked) of everything callable on a plugin's class."""
    for name in dir(type(plugin)):
        function = inspect.getattr_static(type(plugin), name)
        function = getattr(function, "__func__", function)
        if not inspect.isfunction(function):
            continue
        options = getattr(function, _MARK, None) or options_of(plugin, name)
        inherited = isinstance(plugin, CallbackMixin) and function is getattr(
            CallbackMixin, name, None
        )
        if not inherited:
            yield name, options


def _check_identity(plugin: object, who: str) -> None:
    if type(plugin).__hash__ is None or type(plugin).__eq__ is not object.__eq__:
        raise PluginError(
            f"{who} compares by value, so two of them cannot be told apart; "
            "remove __eq__ (for a dataclass: @dataclass(eq=False))"
        )


def _check_state(plugin: object, who: str) -> None:
    has = [name for name in STATE if hasattr(plugin, name)]
    if len(has) == 1:
        (other,) = set(STATE) - set(has)
        raise PluginError(f"{who} has {has[0]} and no {other}; define both, or neither")


def _check_unmarked(method: str, who: str) -> None:
    if method in EVENTS:
        raise PluginError(
            f"{who}: {method} is named like an event but not marked; "
            "put @hookimpl above it, or give it another name"
        )
    event = misspelt(method)
    if event:
        raise PluginError(f"{who}: {method} {no_event(event)}")


def _check_foreign(plugin: object, method: str, who: str) -> None:
    """Refuses another trainer's name in a class of HAT's form, where nothing need be marked."""
    owner = next(cls for cls in type(plugin).__mro__ if method in vars(cls))
    if method in FOREIGN_NAMES and issubclass(owner, CallbackMixin):
        raise PluginError(f"{who}: {method} {foreign_name(method)}")


def _check_method(plugin: object, method: str, options: dict[str, Any], who: str) -> None:
    event = options.get("specname") or method
    if event not in EVENTS:
        raise PluginError(f"{who}: unknown event {event!r}{meant(event)}")
    function = getattr(plugin, method)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"{who}: {method} is async; events are plain calls, write `def {method}`")
    if options.get("hookwrapper"):
        raise PluginError(f"{who}: {method} is an old-style wrapper; use @hookimpl(wrapper=True)")
    if options.get("wrapper") and not inspect.isgeneratorfunction(function):
        raise PluginError(
            f"{who}: {method} is a wrapper and must yield once: `result = yield; return result`"
        )
    if not options.get("wrapper") and inspect.isgeneratorfunction(function):
        raise PluginError(f"{who}: {method} yields; mark it @hookimpl(wrapper=True)")
    if options.get("tryfirst") and options.get("trylast"):
        raise PluginError(f"{who}: {method} {BOTH_TURNS}")
    _check_arguments(function, event, f"{who}: {method}")


def _check_arguments(function: Any, event: str, where: str) -> None:
    accepted = EVENTS[event].arguments
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if argument.kind is inspect.Parameter.VAR_POSITIONAL:
            raise PluginError(f"{where} takes *{argument.name}; name the arguments it wants")
        has_default = argument.default is not inspect.Parameter.empty
        if argument.name not in accepted and not has_default:
            hint = did_you_mean(argument.name, accepted)
            raise PluginError(f"{where} wants unknown argument {argument.name!r}{hint}")
        if argument.name in DEPRECATED and argument.name in accepted:
            _warn_once(where, argument.name)
        if argument.kind is inspect.Parameter.KEYWORD_ONLY and not has_default:
            raise PluginError(
                f"{where} takes {argument.name!r} by keyword only; remove the `*` before it"
            )


def _warn_once(where: str, argument: str) -> None:
    """Warns the author of a plugin of an argument that will go."""
    if (where, argument) in _warned:
        return
    _warned.add((where, argument))
    since, use, until = DEPRECATED[argument]
    warnings.warn(
        f"{where} wants {argument!r}, which is deprecated since hatbus {since} and goes in "
        f"{until}; use {use}",
        DeprecationWarning,
        stacklevel=2,
    )
