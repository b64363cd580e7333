"""Checkpoints for hatbus: durable, without pickle, and exact to resume from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_checkpoint.checkpoint import Checkpoint
    from hatbus_checkpoint.weights import weights_of

__all__ = ["Checkpoint", "weights_of"]

__getattr__ = lazily(__name__, Checkpoint="checkpoint", weights_of="weights")
