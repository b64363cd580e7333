"""Checkpoints for hatbus: durable, without pickle, and exact to resume from."""

from hatbus_checkpoint.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
