"""``ShownCheckpoint``: what a checkpoint was saved of, for work beside a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus import hookimpl, plugin
from hatbus.bus import acquit
from hatbus_checkpoint import model_state
from hatbus_checkpoint.agree import first_of_all
from hatbus_checkpoint.compare import versions_of
from hatbus_checkpoint.restore import Saved
from hatbus_checkpoint.sharded.placing import Placing

if TYPE_CHECKING:
    from hatbus.loop import Context
    from hatbus_checkpoint.folder import Entry
    from hatbus_checkpoint.targets import Target

_TRIES = 5


@plugin(stage="average")
class ShownCheckpoint:
    """Gives a model the weights of a checkpoint when everybody else is prepared.

    The plugins that take part get what they had saved, such as averages; optimizer, data and random
    state are left alone, so nothing can be trained on from here.

    Args:
        target: which checkpoint.

    Attributes:
        name: of the checkpoint that was taken; empty before.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.name = ""

    @hookimpl(trylast=True)
    def on_loop_begin(self, ctx: Context) -> None:
        """Reads and gives it.

        Raises:
            CheckpointError: there is none, it is damaged, or of another model.
        """
        entry, model, beside, states = self._read(ctx)
        self.name = ctx.storage["shown_checkpoint"] = entry.path.name
        members = ctx.bus.members
        mine = {
            name: state
            for name, state in states.items()
            if name in members and hasattr(members[name].plugin, "load_state_dict")
        }
        ctx.bus.load_state_dict(mine, versions_of(entry.manifest["plugins"]))
        saved = Saved(entry)
        with saved.using("model"):
            model_state.give(
                ctx.model, model, strict=True, changed=saved.changed_buffers(), advice=""
            )
        with saved.using("beside"):
            model_state.give_beside(ctx, beside, strict=bool(beside))
        progress, position = entry.manifest["progress"], ctx.position
        position.epoch, position.step = progress["epoch"], progress["step"]
        position.global_step, ctx.updates = progress["global_step"], progress["updates"]
        ctx.epoch_id = position.epoch if position.step else max(position.epoch - 1, 0)
        ctx.global_step_id = max(position.global_step - 1, 0)

    def _read(self, ctx: Context) -> tuple[Entry, dict[str, Any], dict[str, Any], dict[str, Any]]:
        """A checkpoint and its parts. A run that goes on may remove it meanwhile: then the next."""
        for left in reversed(range(_TRIES)):
            entry = first_of_all(ctx, self.target.entry)
            try:
                saved = Saved(entry)
                placing = Placing(ctx.model.state_dict(), saved.were_whole())
                states = {n: placing.of_plugin(state) for n, state in saved.plugins().items()}
                return entry, placing.model(saved.model()), saved.model("beside"), states
            except Exception:
                if entry.path.exists() or ctx.world_size > 1 or not left:
                    raise
        raise AssertionError


acquit(ShownCheckpoint.on_loop_begin)  # whoever asked for it named a checkpoint, and no plugin
