"""Changes of a model's structure in mid-run: modules, parameters and buffers put in or replaced.

Whoever keeps references to modules or tensors of the model compares ``structure_of(ctx)`` with the
number of its last look, and looks them up anew when it is another. What is registered by torch's
own ways counts by itself; ``structure_changed(ctx)`` says what does not.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from hatbus.loop.context import Context

_STRUCTURE: Final = "model.structure"


def structure_of(ctx: Context) -> int:
    """How often the model's structure was changed in this run, by whomever."""
    count: int = ctx.storage.get(_STRUCTURE, 0)
    return count


def structure_changed(ctx: Context) -> None:
    """Says that the model's structure was changed, so that everything follows before the next use.

    To be called by every process of a run, after something was taken off the model (``del``), put
    into ``_modules``, ``_parameters`` or ``_buffers`` by hand, or told to train or not to
    (``requires_grad_``; a DDP wrapper is then made anew). A module, parameter or buffer that is
    assigned, as in ``model.head = nn.Linear(8, 2)``, is noticed without it. The optimizer is the
    caller's: give it the new parameters.
    """
    ctx.storage[_STRUCTURE] = structure_of(ctx) + 1


@contextmanager
def structure_watched(ctx: Context) -> Iterator[None]:
    """Counts every module, parameter and new buffer that is registered in the model meanwhile.

    torch calls these hooks where something is registered, and only there: a step costs nothing.
    """
    from torch.nn.modules import module as torchs

    known: WeakSet[nn.Module] = WeakSet(ctx.all_modules.modules())

    def put_module(parent: nn.Module, _: str, child: nn.Module | None) -> None:
        if parent in known:
            structure_changed(ctx)
            known.update(() if child is None else child.modules())

    def put_parameter(parent: nn.Module, _name: str, _parameter: Any) -> None:
        if parent in known:
            structure_changed(ctx)

    def put_buffer(parent: nn.Module, name: str, _: Any) -> None:
        # a forward pass may put another tensor in a buffer's place in every step; that is no change
        if parent._buffers.get(name) is None and parent in known:  # noqa: SLF001 - torch shows it nowhere else
            structure_changed(ctx)

    handles = [
        torchs.register_module_module_registration_hook(put_module),
        torchs.register_module_parameter_registration_hook(put_parameter),
        torchs.register_module_buffer_registration_hook(put_buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
