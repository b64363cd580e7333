"""hatbus plugin: curves, images, histograms and texts of a run for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_tensorboard.tensorboard import TensorBoard

__all__ = ["TensorBoard"]

__getattr__ = lazily(__name__, TensorBoard="tensorboard")
