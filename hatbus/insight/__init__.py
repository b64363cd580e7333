"""What a run will do, and what it did: explain, preview, profile.

Public: the preview of a schedule, the marks that a plugin puts on it, and the costs of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.insight.preview_run import marks_every, preview
    from hatbus.insight.profile import Profile

__all__ = ["Profile", "marks_every", "preview"]

__getattr__ = lazily(__name__, marks_every="preview_run", preview="preview_run", Profile="profile")
