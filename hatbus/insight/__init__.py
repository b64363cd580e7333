"""What a run will do, and what it did: explain, preview, profile.

Public: the preview of a schedule, the marks that a plugin puts on it, the costs of a run, and
curves in the terminal or as a picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.insight.curves import draw_curves, show_curves
    from hatbus.insight.preview_picture import check_target
    from hatbus.insight.preview_run import marks_every, preview
    from hatbus.insight.profile import Profile

__all__ = ["Profile", "check_target", "draw_curves", "marks_every", "preview", "show_curves"]

__getattr__ = lazily(
    __name__,
    draw_curves="curves",
    show_curves="curves",
    check_target="preview_picture",
    marks_every="preview_run",
    preview="preview_run",
    Profile="profile",
)
