"""Says which plugin, distribution, event, step and task an exception came out of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import CodeType, TracebackType

    from pluggy import HookImpl

FILE_PREFIX: Final = "<hatbus "
STATE: Final = "state_dict"
_MARK: Final = "__hatbus_blame__"
_core_code: Final[WeakSet[CodeType]] = WeakSet()


@dataclass(frozen=True, slots=True)
class Blame:
    """Where an exception came from. ``plugin`` is None where no plugin is guilty of it."""

    plugin: str | None
    source: str
    event: str


def blame_of(error: BaseException) -> Blame | None:
    """What ``blame`` recorded on this exception, if anything."""
    found: Blame | None = getattr(error, _MARK, None)
    return found


def source_of(plugin: object) -> str:
    """Distribution and version of a plugin, or its module when it has none."""
    described: str = getattr(plugin, "__hatbus_source__", "")
    return described or type(plugin).__module__


def blame(error: BaseException, impl: HookImpl, event: str, ctx: Any) -> None:
    """Adds the note to an exception, once: the innermost implementation is the guilty one.

    If that is the core's own, called by a plugin (a validation's forward), the note says so, but
    the guilty one is what the core called: the model, the loss or the data.
    """
    known = blame_of(error)
    if known is not None:
        if known.event == STATE:
            setattr(error, _MARK, replace(known, event=f"{STATE} in {event}"))
            error.add_note(f"asked for by plugin {impl.plugin_name!r}, {event}, {_where(ctx)}")
        return
    source = source_of(impl.plugin)
    core = impl.plugin_name.startswith("core.")
    is_innocent = core or _came_through_core(error.__traceback__)
    setattr(error, _MARK, Blame(None if is_innocent else impl.plugin_name, source, event))
    who = "hatbus's own" if core else f"plugin {impl.plugin_name!r} ({source}),"
    error.add_note(f"in {who} {event}, {_where(ctx)}")


def blame_state(error: BaseException, name: str, plugin: object) -> None:
    """Adds the note to an exception that came out of a plugin's ``state_dict``."""
    if blame_of(error) is None:
        source = source_of(plugin)
        setattr(error, _MARK, Blame(name, source, STATE))
        error.add_note(f"in plugin {name!r} ({source}), {STATE}")


def locate(error: BaseException, ctx: Any) -> None:
    """Adds step and task to an exception that came out of no plugin (the model, the loss)."""
    if getattr(error, _MARK, None) is None:
        error.add_note(f"in {_where(ctx)}")


def note_another(error: BaseException, another: BaseException) -> None:
    """Notes on an error that is under way what else went wrong on its way out."""
    notes = "; ".join(getattr(another, "__notes__", ()))
    error.add_note(f"then {type(another).__name__}: {another} ({notes})")


def _where(ctx: Any) -> str:
    task = getattr(ctx, "task", None)
    return f"step {getattr(ctx, 'global_step_id', '?')}" + (f", task {task!r}" if task else "")


def acquit(function: Any) -> None:
    """What comes out of this implementation is not its plugin's fault, and no message says so.

    It is that of what the implementation works on: the model, the data, a checkpoint.

    Args:
        function: the implementation.
    """
    code = getattr(function, "__code__", None)
    if code is not None:
        _core_code.add(code)


def _came_through_core(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if traceback.tb_frame.f_code in _core_code:
            return True
        traceback = traceback.tb_next
    return False


def frozen_line(traceback: TracebackType | None, filename: str) -> int:
    """The line of the frozen dispatch function ``filename`` that this traceback passed through."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == filename:
            return traceback.tb_lineno
        traceback = traceback.tb_next
    return -1


def came_out_of(traceback: TracebackType | None, filename: str, line: int) -> bool:
    """Whether an exception left ``line`` of that same call of a frozen function before."""
    frame = None
    while traceback is not None:
        if frame is None and traceback.tb_frame.f_code.co_filename == filename:
            frame = traceback.tb_frame
        if frame is traceback.tb_frame and traceback.tb_lineno == line:
            return True
        traceback = traceback.tb_next
    return False


def caller_name(frame: Any, lines: Mapping[str, Sequence[str]]) -> str:
    """The name of the plugin whose implementation is running in or above a stack frame.

    Args:
        frame: such as ``sys._getframe()``.
        lines: a bus's ``callers``.

    Returns:
        The instance name; ``"the program"`` where no plugin is running.
    """
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith(FILE_PREFIX) and filename in lines:
            name: str = lines[filename][frame.f_lineno]
            if name:
                return name
        frame = frame.f_back
    return "the program"
