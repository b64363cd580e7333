"""Plugin classes made of callback classes of other libraries, for jobs that name those."""

from __future__ import annotations

import inspect
from typing import Any


def adapted(adapter: type[Any], cls: type[Any], *own: str) -> type[Any]:
    """A plugin class whose options are those of a callback class.

    Args:
        adapter: the plugin that takes a callback.
        cls: of the callback.
        own: options of the adapter that are offered beside the callback's.
    """

    def build(self: Any, *given: Any, **options: Any) -> None:
        mine = {name: options.pop(name) for name in own if name in options}
        adapter.__init__(self, cls(*given, **options), **mine)

    wanted = inspect.signature(adapter).parameters
    theirs = [
        p.replace(annotation=_plain(p))
        for p in _parameters(cls)
        if p.kind is not p.VAR_POSITIONAL and p.name not in own
    ]
    more = [wanted[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in own]
    last = [p for p in theirs if p.kind is p.VAR_KEYWORD]
    signature = inspect.Signature([*(p for p in theirs if p not in last), *more, *last])
    names = {
        "__init__": build,
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "__signature__": signature,
    }
    return type(cls.__name__, (adapter,), names)


def _parameters(cls: type[Any]) -> list[inspect.Parameter]:
    if cls.__init__ is object.__init__:
        return []
    return list(inspect.signature(cls).parameters.values())


def _plain(parameter: inspect.Parameter) -> Any:
    """Its annotation, unless that is a text, which only the callback's own module could read."""
    found = parameter.annotation
    return inspect.Parameter.empty if isinstance(found, str) else found
