"""``FreezeBNStatistics``: batch norms use their running statistics and leave them alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus import hookimpl, plugin
from hatbus.loop import structure_of
from hatbus_model.freezing import batch_norms, keep_in_eval

if TYPE_CHECKING:
    from torch import nn

    from hatbus.loop import Context


@plugin(stage="train")
class FreezeBNStatistics:
    """Puts every batch norm to eval mode at epoch begin, and again whenever something undid it.

    Their weights and biases go on training. Source: ``hat.callbacks.FreezeBNStatistics``.
    """

    def __init__(self) -> None:
        self._norms: list[nn.Module] = []
        self._structure = -1

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Finds the batch norms and puts them to eval mode."""
        self._find(ctx)

    @hookimpl
    def on_forward_begin(self, ctx: Context) -> None:
        """Puts back to eval mode what ``model.train()`` has changed."""
        if self._structure != structure_of(ctx):
            self._find(ctx)
        keep_in_eval(self._norms)

    def _find(self, ctx: Context) -> None:
        self._norms, self._structure = batch_norms(ctx.all_modules), structure_of(ctx)
        keep_in_eval(self._norms)
