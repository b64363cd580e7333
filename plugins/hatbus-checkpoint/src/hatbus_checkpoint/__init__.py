"""Checkpoints for hatbus: durable, without pickle, and exact to resume from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_checkpoint.checkpoint import Checkpoint
    from hatbus_checkpoint.init_from import InitFrom, Match
    from hatbus_checkpoint.loading import Loaded
    from hatbus_checkpoint.predictions import Predictions
    from hatbus_checkpoint.weights import weights_of

__all__ = ["Checkpoint", "InitFrom", "Loaded", "Match", "Predictions", "weights_of"]

__getattr__ = lazily(
    __name__,
    Checkpoint="checkpoint",
    InitFrom="init_from",
    Match="init_from",
    Loaded="loading",
    Predictions="predictions",
    weights_of="weights",
)
