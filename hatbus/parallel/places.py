"""Where a process is in its run: in which plugin and event, which step, and whether it waits."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.bus.blame import blame_of
from hatbus.bus.member import is_core

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

_WAITING: Final = (
    "torch/distributed/",
    "torch/nn/parallel/",  # DDP's buffers
    "torch/autograd/graph.py",  # a backward that exchanges gradients
    "hatbus/parallel/board.py",
    "hatbus/parallel/agreed.py",
)
_NOT_SAID: Final = ("torch/", "hatbus/", "lib/python")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process is.

    Attributes:
        plugin: the innermost whose implementation runs; empty: none.
        event: which one.
        step: of the run; -1: before the first.
        at: another description, such as ``"at the end of epoch 0"``.
        line: the innermost line that is neither torch's nor hatbus's, ``file:line``.
        waits: whether it waits for the other processes.
    """

    plugin: str = ""
    event: str = ""
    step: int = -1
    at: str = ""
    line: str = ""
    waits: bool = False

    def __str__(self) -> str:
        """``in plugin 'boom', on_step_end, step 7``."""
        words = [f"plugin {self.plugin!r}"] if self.plugin else []
        words += [self.event] if self.event else []
        words += [f"step {self.step}"] if self.step >= 0 else ["the start"] * (not self.at)
        found = "in " + ", ".join(words) if words else ""
        found = f"{found} {self.at}".strip()
        return f"{found} ({self.line})" if self.line and not self.plugin else found

    def as_waiting(self) -> Place:
        """The same, of a process whose collective came to nothing."""
        return replace(self, waits=True)

    def is_behind(self, others: Iterable[Place]) -> bool:
        """Whether it is at another place than most, at the end of an epoch while they step."""
        return bool(self.at) and any(not other.at for other in others)

    def as_json(self) -> dict[str, Any]:
        """As plain data, for ``Place(**...)``."""
        return asdict(self)


def place_of_error(error: BaseException, ctx: Any) -> Place:
    """Where an error came out of."""
    blamed, frame = blame_of(error), None
    trace = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
    found = place_of_frame(frame, ctx) if frame is not None else Place(step=step_of(ctx))
    if blamed is not None:
        found = replace(found, plugin=blamed.plugin or "", event=blamed.event)
    return found


def place_of_main(ctx: Any) -> Place:
    """Where this process's main thread is."""
    return place_of_frame(sys._current_frames().get(threading.main_thread().ident or 0), ctx)  # noqa: SLF001 - documented


def place_of_frame(frame: FrameType | None, ctx: Any) -> Place:
    """Where a stack is."""
    lines = ctx.bus.callers if ctx is not None else {}
    plugin, event, line, waits = "", "", "", None
    while frame is not None:
        file = frame.f_code.co_filename
        if waits is None:
            waits = any(part in file for part in _WAITING)
        if not plugin and file in lines:
            name = lines[file][frame.f_lineno]
            if name and not is_core(name):
                plugin, event = name, frame.f_code.co_name
        if not line and not file.startswith("<") and not any(part in file for part in _NOT_SAID):
            line = f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    at = getattr(getattr(ctx, "control", None), "at", "")
    return Place(plugin, event, step_of(ctx), at, line, bool(waits))


def step_of(ctx: Any) -> int:
    """The present step; -1 before the first."""
    position = getattr(ctx, "position", None)
    if position is None:
        return -1
    return int(getattr(ctx, "global_step_id", 0)) if position.global_step else -1


def all_stacks() -> str:
    """The Python stacks of all threads of this process, the main one first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001 - documented
    main = threading.main_thread().ident
    order = sorted(frames, key=lambda ident: ident != main)
    parts = [
        f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frames[ident]))
        for ident in order
    ]
    return "\n".join(parts)
