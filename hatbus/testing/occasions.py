"""``Occasions``: makes the events happen that a tiny run would not see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hatbus import hookimpl, plugin

if TYPE_CHECKING:
    from hatbus import Context


@plugin(stage="report")
class Occasions:
    """After the first step it validates, saves, loads, exports, and publishes a value.

    Nobody has to provide those spans; where a plugin does, it is called.

    Args:
        load: emit ``load_checkpoint`` too, with a path where nothing is.
    """

    def __init__(self, *, load: bool = True) -> None:
        self.load = load

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Emits every event that comes at any time."""
        if ctx.global_step_id > 0 or ctx.exception is not None:
            return
        ctx.log({"occasions/one": 1.0})
        ctx.emit.validate(ctx, "occasions")
        if ctx.save("occasions") is False and ctx.emit.on_checkpoint_saved is not None:
            ctx.emit.on_checkpoint_saved(ctx, Path("no-checkpoint"))
        if self.load:
            ctx.emit.load_checkpoint(ctx, Path("no-checkpoint"))
        ctx.emit.export_model(ctx, "occasions")
        self._predict(ctx)

    def _predict(self, ctx: Context) -> None:
        """The events of a prediction, of which nothing is written."""
        if ctx.emit.on_prediction_begin is not None:
            ctx.emit.on_prediction_begin(ctx)
        ctx.emit.write_outputs(ctx, None)
        if ctx.emit.on_prediction_end is not None:
            ctx.emit.on_prediction_end(ctx)
