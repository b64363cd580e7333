"""The user's own functions that write to TensorBoard."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import PluginError, did_you_mean
from hatbus.events import EVENTS, ON_REQUEST

if TYPE_CHECKING:
    from hatbus import Context

KNOWN: Final = ("writer", *EVENTS["on_batch_end"].arguments)
"""What a function may ask for by name; ``step_id`` is the step of the curves, as on HAT's page."""
FIRST: Final = ("writer", "model_outs", "step_id")
"""What the arguments of a function are that has other names for them, in order."""


class UpdateFunction:
    """One function, and which arguments it wants.

    Raises:
        PluginError: it is no function, or wants an argument that there is not.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise PluginError(
                f"tensorboard: tb_update_funcs holds {function!r}; accepted: functions of writer, "
                "model_outs, global_step_id"
            )
        self.function = function
        parameters = inspect.signature(function).parameters.values()
        self.takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.wanted = [
            p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]
        self.by_place = self._count_by_place(parameters)
        for parameter in parameters if not self.by_place else ():
            name, has_default = parameter.name, parameter.default is not parameter.empty
            if name in self.wanted and name not in KNOWN and not has_default:
                raise PluginError(
                    f"tensorboard: {getattr(function, '__name__', function)!r} of tb_update_funcs "
                    f"wants unknown argument {name!r}{did_you_mean(name, KNOWN)}"
                )

    def _count_by_place(self, parameters: Iterable[inspect.Parameter]) -> int:
        """How many arguments are passed by place: three, no name after the first being known."""
        needed = [p.name for p in parameters if p.name in self.wanted and p.default is p.empty]
        is_strange = len(needed) == len(FIRST) and set(KNOWN).isdisjoint(needed[1:])
        return len(needed) if is_strange else 0

    def __call__(self, writer: Any, ctx: Context) -> None:
        """Calls the function with what it wants."""
        step = ctx.training.global_step_id
        own = {"writer": writer, "ctx": ctx, "step_id": step, "global_step_id": step}
        names = [n for n in KNOWN if n in self.wanted]
        if self.takes_more:
            names = [n for n in KNOWN if n in self.wanted or n not in ON_REQUEST]
        placed = [own.get(n, ctx.model_outs) for n in FIRST[: self.by_place]]
        if self.by_place:
            names = [n for n in names if n not in FIRST]
        self.function(*placed, **{n: own[n] if n in own else getattr(ctx, n) for n in names})


def update_functions(given: Any) -> list[UpdateFunction]:
    """The given functions.

    Raises:
        PluginError: something that is no function, or cannot be called as one.
    """
    if given is None:
        return []
    if isinstance(given, str) or not (callable(given) or isinstance(given, Iterable)):
        raise PluginError(f"tensorboard: tb_update_funcs is {given!r:.80}; accepted: functions")
    return [UpdateFunction(one) for one in ([given] if callable(given) else given)]
