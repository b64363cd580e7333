"""Plugins that write a model for use without hatbus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_export.save_traced import SaveTraced

__all__ = ["SaveTraced"]

__getattr__ = lazily(__name__, SaveTraced="save_traced")
