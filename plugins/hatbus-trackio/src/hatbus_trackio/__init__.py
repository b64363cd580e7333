"""hatbus plugin: a run's settings, metrics, images, texts and checkpoints for Trackio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_trackio.trackio import Trackio

__all__ = ["Trackio"]

__getattr__ = lazily(__name__, Trackio="trackio")
