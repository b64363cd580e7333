"""What a span does that nobody on a bus implements: there, the Trainer's parts are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import HookError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatbus.events.training import Event

OPTIONAL: Final = (
    "validate",
    "write_outputs",
    "save_checkpoint",
    "load_checkpoint",
    "export_model",
)
"""Nobody may do these: they give False then."""
_PARTS: Final = {
    "Loop() of hatbus.loop": ("run_loop", "run_epoch", "run_step"),
    "BatchProcessor(loss) of hatbus": (
        "run_batch",
        "forward",
        "compute_loss",
        "backward",
        "clip_gradients",
        "optimizer_step",
    ),
}


def unprovided(event: Event) -> Callable[..., Any]:
    """What is called for such a span."""
    if event.name in OPTIONAL:
        return lambda *_: False

    def missing(*_: Any) -> Any:
        part = next((part for part, spans in _PARTS.items() if event.name in spans), "")
        own = f"register {part} (core=True), or " if part else "register "
        raise HookError(f"nobody on this bus does {event.name!r}; {own}a plugin that implements it")

    return missing
