"""Core hook wrappers: the moments around spans, and the task's scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus.declare import hookimpl
from hatbus.events import PAIRS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from hatbus.context import Context

    Wrapper = Callable[..., Generator[None, Any, Any]]


def emitting(span: str, result: str | None = None, failing: str | None = None) -> Wrapper:
    """A hook wrapper that emits a span's begin and end around it.

    Args:
        span: the span.
        result: attribute of the context that takes the span's result before the end is emitted.
        failing: event that is told the exception before the end is emitted.

    Returns:
        The wrapper; its ``moments`` name what it emits, so that the bus can leave it out when
        nobody listens.
    """
    begin, end = PAIRS[span]

    def wrapper(self: object, ctx: Context) -> Generator[None, Any, Any]:
        emit = ctx.emit
        try:
            begin_now = getattr(emit, begin)
            if begin_now is not None:
                begin_now(ctx)
            value = yield
            if result is not None:
                setattr(ctx, result, value)
        except BaseException as error:
            ctx.exception = error
            if failing is not None:
                emit_after_error(getattr(emit, failing), error, ctx, error)
            emit_after_error(getattr(emit, end), error, ctx)
            raise
        end_now = getattr(emit, end)
        if end_now is not None:
            end_now(ctx)
        return value if result is None else getattr(ctx, result)

    wrapper.__name__ = span
    wrapper.__qualname__ = f"Moments.{span}"
    wrapper.__doc__ = f"Emits {begin} and {end}."
    if result is None:
        heard = (begin, end) if failing is None else (begin, end, failing)
        wrapper.moments = heard  # type: ignore[attr-defined]
    return hookimpl(wrapper=True, tryfirst=True)(wrapper)


def emit_after_error(
    event: Callable[..., Any] | None, error: BaseException, *arguments: Any
) -> None:
    """Emits an event on the way out of an error; a second error becomes a note on the first."""
    if event is None:
        return
    try:
        event(*arguments)
    except BaseException as another:  # noqa: BLE001 - the first error is the one to raise
        notes = "; ".join(getattr(another, "__notes__", ()))
        error.add_note(f"then {type(another).__name__}: {another} ({notes})")


class Moments:
    """Emits begin and end around every span that has them."""

    run_loop = emitting("run_loop", failing="on_exception")
    run_epoch = emitting("run_epoch")
    run_step = emitting("run_step")
    run_batch = emitting("run_batch")
    forward = emitting("forward", "model_outs")
    backward = emitting("backward")
    validate = emitting("validate")

    @hookimpl(wrapper=True, tryfirst=True)
    def optimizer_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Emits on_optimizer_step_begin and _end; counts the committed update in between."""
        emit = ctx.emit
        try:
            if emit.on_optimizer_step_begin is not None:
                emit.on_optimizer_step_begin(ctx)
            ctx.committed = yield
            ctx.updates += ctx.committed
        except BaseException as error:
            ctx.exception = error
            emit_after_error(emit.on_optimizer_step_end, error, ctx)
            raise
        if emit.on_optimizer_step_end is not None:
            emit.on_optimizer_step_end(ctx)
        return ctx.committed


class TaskScope:
    """Opens the scope of a batch's task: inside it only that task's plugins hear batch events."""

    @hookimpl(wrapper=True, tryfirst=True)
    def run_batch(self, ctx: Context) -> Generator[None, Any, Any]:
        """Makes ``ctx.emit`` the task's for the length of a batch."""
        outer, ctx.emit = ctx.emit, ctx.bus.emitter(ctx.task)
        try:
            return (yield)
        finally:
            ctx.emit = outer
