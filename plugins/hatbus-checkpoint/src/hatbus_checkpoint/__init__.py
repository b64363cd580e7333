"""Checkpoints for hatbus: durable, without pickle, and exact to resume from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatbus_checkpoint.checkpoint import Checkpoint

__all__ = ["Checkpoint"]


def __getattr__(name: str) -> Any:
    """Imports ``Checkpoint``, and torch with it, when it is first asked for."""
    if name != "Checkpoint":
        raise AttributeError(f"module 'hatbus_checkpoint' has no attribute {name!r}")
    from hatbus_checkpoint.checkpoint import Checkpoint

    return Checkpoint
