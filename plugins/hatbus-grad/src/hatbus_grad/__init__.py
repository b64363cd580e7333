"""Plugins for gradients: scaled per module and task, and clipped."""
