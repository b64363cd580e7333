"""The user's own functions that write to TensorBoard."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from hatbus import Context

KNOWN: Final = (
    "writer",
    "model_outs",
    "global_step_id",
    "epoch_id",
    "step_id",
    "batch",
    "task",
    "losses",
    "model",
    "ctx",
)
"""What a function may ask for by name; ``step_id`` is the step of the curves, as on HAT's page."""


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
        for parameter in parameters:
            name, has_default = parameter.name, parameter.default is not parameter.empty
            if name in self.wanted and name not in KNOWN and not has_default:
                raise PluginError(
                    f"tensorboard: {getattr(function, '__name__', function)!r} of tb_update_funcs "
                    f"wants unknown argument {name!r}{did_you_mean(name, KNOWN)}"
                )

    def __call__(self, writer: Any, ctx: Context) -> None:
        """Calls the function with what it wants."""
        names = KNOWN if self.takes_more else [name for name in self.wanted if name in KNOWN]
        step = ctx.training.global_step_id
        own = {"writer": writer, "ctx": ctx, "step_id": step, "global_step_id": step}
        self.function(**{n: own[n] if n in own else getattr(ctx, n) for n in names})


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
