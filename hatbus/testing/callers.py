"""Who is at work in a stack of calls."""

from __future__ import annotations

from typing import Any


def inside_a_step(frame: Any) -> bool:
    """Whether ``run_step`` is under way in a stack."""
    while frame is not None:
        if frame.f_code.co_name == "run_step":
            return True
        frame = frame.f_back
    return False


def own_line(frame: Any) -> str:
    """The plugin's own line in a stack: the one that frozen dispatch called."""
    line = ""
    while frame is not None and not frame.f_code.co_filename.startswith("<hatbus "):
        line = f"{frame.f_code.co_filename.rpartition('/')[2]} line {frame.f_lineno}"
        frame = frame.f_back
    return line
