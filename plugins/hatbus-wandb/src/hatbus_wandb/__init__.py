"""hatbus plugin: a run's settings, metrics, images, texts and checkpoints for Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_wandb.wandb import Wandb

__all__ = ["Wandb"]

__getattr__ = lazily(__name__, Wandb="wandb")
