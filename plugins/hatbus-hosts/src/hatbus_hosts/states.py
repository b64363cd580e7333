"""The states of plugins in the checkpoint of a host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hatbus import hookimpl, plugin
from hatbus.bus import state_version
from hatbus.errors import CheckpointError
from hatbus.log import log
from hatbus.loop import Position

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hatbus import Bus, Context
    from hatbus.loop import OpenSpans


NOTHING_SAVED: Final = "the checkpoint was saved without a %s: its plugins begin anew"


@plugin(stage="checkpoint")
class Resume:
    """Gives plugins their states back when a run begins, at the place where hatbus does that.

    Args:
        dropped: names whose states are left out.

    Attributes:
        state: of a host, from ``saved_state``; empty: nothing to give back.
        dropped: as given.
    """

    def __init__(self, dropped: Sequence[str]) -> None:
        self.state: dict[str, Any] = {}
        self.dropped = tuple(dropped)

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Gives the states back."""
        state, self.state = self.state, {}
        if not state:
            return
        plugins = {n: s for n, s in state["plugins"].items() if n not in self.dropped}
        new = [
            member.name
            for member in ctx.bus.members.values()
            if hasattr(member.plugin, "state_dict") and member.name not in plugins
        ]
        if new:
            log.warning("the checkpoint has no state of %s: fresh", ", ".join(map(repr, new)))
        ctx.bus.load_state_dict(plugins, state["versions"])

    def place(self, position: Position) -> tuple[Position, int]:
        """Where the run goes on, and how many updates are behind it.

        Args:
            position: where nothing was saved.
        """
        if not self.state:
            return position, position.global_step
        return Position(*self.state["position"]), int(self.state["updates"])


def saved_state(ctx: Context, spans: OpenSpans, is_running: bool) -> dict[str, Any]:
    """What plugins keep, and where the run is, as plain data and tensors.

    A step without its update is not behind the run yet: its gradients are in no checkpoint.
    """
    begun = int(is_running and "run_step" in spans.opened and not ctx.committed)
    if is_running:
        spans.enter("save_checkpoint", reason="checkpoint of the host")
    plugins = ctx.bus.state_dict()
    if is_running:
        spans.leave("save_checkpoint")
    place = ctx.position
    return {
        "plugins": plugins,
        "versions": {name: state_version(ctx.bus.members[name].plugin) for name in plugins},
        "position": [place.epoch, place.step - begun, place.global_step - begun],
        "updates": ctx.updates,
    }


def check_taken(bus: Bus, states: Mapping[str, Any], dropped: Sequence[str]) -> None:
    """Refuses states that no plugin takes.

    Raises:
        CheckpointError: the first one.
    """
    for name in states:
        member = bus.members.get(name)
        if name not in dropped and not hasattr(member and member.plugin, "load_state_dict"):
            raise CheckpointError(
                f"the checkpoint holds the state of plugin {name!r}, which is not here or takes "
                f"none; add the plugin, or give the host drop_plugin_state=[{name!r}]"
            )
