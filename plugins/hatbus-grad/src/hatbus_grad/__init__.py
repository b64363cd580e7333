"""Plugins for gradients: scaled per module and task, and clipped."""

from hatbus_grad.grad_clip import GradClip
from hatbus_grad.grad_scale import GradScale

__all__ = ["GradClip", "GradScale"]
