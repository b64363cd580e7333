"""Plugins that write a model for use without hatbus."""

from hatbus_export.save_traced import SaveTraced

__all__ = ["SaveTraced"]
