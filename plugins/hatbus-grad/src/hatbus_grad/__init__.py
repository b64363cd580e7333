"""Plugins for gradients: scaled per module and task, and clipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_grad.grad_clip import GradClip
    from hatbus_grad.grad_scale import GradScale

__all__ = ["GradClip", "GradScale"]

__getattr__ = lazily(__name__, GradClip="grad_clip", GradScale="grad_scale")
