"""What a run will do or did: explain, preview and profile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.insight.preview_run import marks_every, preview

__all__ = ["marks_every", "preview"]

__getattr__ = lazily(__name__, marks_every="preview_run", preview="preview_run")
