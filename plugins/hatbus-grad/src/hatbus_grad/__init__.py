"""Plugins for gradients: scaled per module and task, clipped, and evaluated anew in an update."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_grad.closure import Closure
    from hatbus_grad.grad_clip import GradClip
    from hatbus_grad.grad_scale import GradScale

__all__ = ["Closure", "GradClip", "GradScale"]

__getattr__ = lazily(__name__, Closure="closure", GradClip="grad_clip", GradScale="grad_scale")
